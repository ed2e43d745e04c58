# The entry points; what each does stands in the script that it calls.
.PHONY: demo test fuzz bench

demo:
	@demo/run

test:
	@scripts/test

fuzz:
	@scripts/fuzz

bench:
	@scripts/bench
