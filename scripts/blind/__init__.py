"""A blinded human study of stories."""
