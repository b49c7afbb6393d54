# Everything runs in .venv, which the first target that needs it creates.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test test-slow lint docs bench coverage clean

setup: $(READY)

# torch first and alone: what depends on it must not choose another build
$(READY): requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' requirements.txt)"
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $(READY)

demo: $(READY)
	$(BIN)/python main.py --model VGG16 --prune_criterion SNAPit --pruning_limit 0.93 --epochs 5

# two processes with one thread each: threads of both on every core would only wait for each other; a file's tests in
# one of them, which share the runs that they look at
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

# mypy looks at the packages as they lie in the wheel
lint: $(READY)
	rm -rf .typecheck && mkdir -p .typecheck/secateur
	cd .typecheck/secateur && ln -s ../../secateur/* ../../main.py ../../framework ../../models ../../criterions \
		../../trainers ../../testers ../../losses ../../utils .
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# the table of criterions from their classes
docs: $(READY)
	$(BIN)/python -m docs.criterions_table

bench: $(READY)
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.score
	$(BIN)/python -m benchmarks.snapit
	$(BIN)/python -m benchmarks.cut
	$(BIN)/python -m benchmarks.attacks
	$(BIN)/python -m benchmarks.importance

# every classification network of torchvision: half an hour on 2 cores, and 16 GB of memory for the largest
coverage: $(READY)
	$(BIN)/python -m benchmarks.coverage --json docs/coverage.json --markdown docs/coverage.md

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .typecheck build secateur.egg-info
