# The two commands of the README. Each makes .venv when it is missing, installs what requirements.txt pins, and runs.
PYTHON ?= python3
PY = .venv/bin/python

.PHONY: train test
train: .venv/.installed
	$(PY) train.py

test: .venv/.installed
	$(PY) -m pytest -q

.venv/.installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@
