# Covey. `make demo` and `make test` do all the set-up that they need on a Debian 12 machine with Go, as root.
MESH := go run ./deploy/cmd/covey-mesh

.PHONY: help up demo down status test test-kvm generate check lint bench
help: ## show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' Makefile
up: ## prepare everything and start a local mesh: PostgreSQL, Consul, every service, two host agents
	@$(MESH) up
demo: ## the same in a directory of its own, then the main job on real VMs, then take it down
	@$(MESH) demo
down: ## stop the local mesh and remove all that it made
	@$(MESH) down
status: ## show the local mesh's processes and address
	@$(MESH) status
test: ## prepare everything and run every test, on real VMs, PostgreSQL and Consul
	@$(MESH) test
test-kvm: ## the whole suite on a host whose KVM boots Linux, Firecracker included (see docs/kvm.md)
	@$(MESH) test -require-kvm
generate: ## generate the code and OpenAPI from proto/
	@$(MESH) generate
check: ## fail if generated code differs from what is checked in, or an import rule is broken
	@$(MESH) check
lint: ## what gofmt, go vet and staticcheck find
	@$(MESH) lint
bench: ## print the figures of SPECIFICATION.md; NAME=boot for one
	@go run ./bench/cmd/covey-bench $(or $(NAME),all)
