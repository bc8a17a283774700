# The commands that people type. `just --list` shows them.

# Format, lints and docs
lint:
    cargo fmt --all --check
    cargo lint
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet

# All tests that need no broker of their own
test:
    cargo test --workspace

# A real broker on a port of this machine, for an hour; then `export MILLSTREAM_KAFKA=127.0.0.1:9092`
broker:
    MILLSTREAM_KAFKA_PORT=9092 MILLSTREAM_KAFKA_MINUTES=60 tests/kafka/broker up

# A bench, such as `just bench k2k --rates 1000`
bench name *flags:
    cargo bench --bench {{name}} -- {{flags}}

# Licenses, origins and advisories of dependencies
deny:
    cargo deny --workspace --all-features --config .deny.toml check

# Whether the public API is compatible with that of a released version, such as `just semver v0.1.0`
semver tag:
    cargo semver-checks --workspace --baseline-rev {{tag}}

# Everything that CI checks
ci:
    .ci/run
