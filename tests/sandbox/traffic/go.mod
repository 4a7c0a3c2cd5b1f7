// The servers that run in pods of the sandbox and the clients that load them: the standard library, nothing else.
module weir.dev/tests/sandbox/traffic

go 1.26.0
