# make run: a cluster on this machine.  make test: the tests.  ARGS="..." goes to the program that is run.
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
# Where `make test-engines` keeps the inference engines' packages.
ENGINES ?= build/engines
# Tests run in so many processes; those with real daemons all in one of them.
WORKERS ?= 2

.PHONY: help run test test-rdma test-engines lint type sim soak pjdfstest bench bench-storage bench-scale image clean

help:
	@echo "make run     install what is missing, run a cluster here and mount it at ./mnt (ARGS: see 'fs3 up --help')"
	@echo "make test    install what is missing and run the tests (ARGS: for pytest)"
	@echo "make test-engines  inference engines' own code on a mount; their packages go into ENGINES=folder (some GB of disk)"
	@echo "make test-rdma  the tests over real RDMA verbs, in an emulated machine that is made for them (ARGS: for pytest)"
	@echo "make lint    style, types and import contracts"
	@echo "make type    types only"
	@echo "make sim     run simulated clusters under faults: SEEDS=n of each shape, or SEED=n SHAPE=name [PLAN=file or text] to see one again (ARGS='--transport rdma': over simulated RDMA)"
	@echo "make soak    the long tests of faults, then simulations from a random seed on until stopped; what fails goes into failures.txt"
	@echo "make pjdfstest  the POSIX test suite on a mount, as root: PJDFSTEST=folder of a copy of github.com/pjd/pjdfstest"
	@echo "make bench   compare with JuiceFS on this machine (ARGS: see tests/bench/compare.py --help)"
	@echo "make bench-storage  throughput of the storage service alone (ARGS: see tests/bench/storage.py --help)"
	@echo "make bench-scale  mgmtd at the size of a large cluster, by simulation (ARGS: see tests/bench/scale.py --help)"
	@echo "make image   build the container image fs3:latest"
	@echo "make clean   remove the virtual environment and caches; data and mounts stay"

run:
	@scripts/prepare $(VENV) run
	@$(BIN)/fs3 up $(ARGS)

test:
	@scripts/prepare $(VENV) test
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadscope $(ARGS)

test-engines:
	@scripts/prepare $(VENV) test
	FS3_ENGINES=$(ENGINES) FS3_TEST_LIMIT_S=600 $(BIN)/python -m pytest $(if $(filter tests/%,$(ARGS)),,tests/engines) $(ARGS)

test-rdma:
	@scripts/prepare $(VENV) test
	@$(BIN)/python -m tests.rdma $(ARGS)

lint: type
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

type:
	@scripts/prepare $(VENV) test
	$(BIN)/mypy

sim:
	@scripts/prepare $(VENV) test
	$(BIN)/python -m tests.sim $(if $(SEEDS),--seeds $(SEEDS)) $(if $(SEED),--seed $(SEED)) $(if $(SHAPE),--shape $(SHAPE)) $(if $(PLAN),--plan '$(PLAN)') $(ARGS)

soak:
	@scripts/prepare $(VENV) test
	FS3_SOAK=1 $(BIN)/python -m pytest -m process $(addprefix tests/process/test_,storage_faults.py disk_faults.py crash_all.py failover.py several_mgmtd.py several_meta.py databases.py)
	FS3_SOAK=1 FS3_TEST_LIMIT_S=3600 $(BIN)/python -m pytest tests/posix/test_operations.py tests/posix/test_exerciser.py
	$(BIN)/python -m tests.sim --first 0 --seeds 1000000000 --keep-going --failures failures.txt $(if $(SHAPE),--shape $(SHAPE)) $(ARGS)

pjdfstest:
	@scripts/prepare $(VENV) test
	$(BIN)/python -m tests.posix.pjdfstest $(if $(PJDFSTEST),--suite $(PJDFSTEST)) $(ARGS)

bench:
	@scripts/prepare $(VENV) test
	$(BIN)/python tests/bench/compare.py $(ARGS)

bench-storage:
	@scripts/prepare $(VENV) test
	$(BIN)/python -m tests.bench.storage $(ARGS)

bench-scale:
	@scripts/prepare $(VENV) test
	$(BIN)/python -m tests.bench.scale $(ARGS)

image:
	docker build -f docker/Dockerfile -t fs3:latest .

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
