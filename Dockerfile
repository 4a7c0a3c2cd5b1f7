# Two images of one binary. `controller` has nothing but the binary, what it links, and the certificates by which it knows
# AWS. `node` stands on the image that kube-proxy stands on, for its nft (1.1.3; weir needs 1.0.6 or newer).
#
#   docker build --target controller --tag weir:0.1.0 .
#   docker build --target node --tag weir-node:0.1.0 .
#
# `make image` does both, for several platforms if asked. Only the stage `crates` uses the network, and what it fetches has
# its hash in Cargo.lock. The same commit gives the same files: base images are pinned by digest, paths are fixed.

FROM rust:1.95.0-slim-trixie@sha256:e14e87345b4d5964ddcc3491d27ee046a0f23820f340c3c1e24da6880141f7c0 AS crates
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
# cargo fetches nothing for a package without a target.
RUN mkdir src && touch src/lib.rs src/main.rs && cargo fetch --locked

FROM crates AS build
# The time of the commit: `make image` gives it.
ARG SOURCE_DATE_EPOCH=0
ENV CARGO_INCREMENTAL=0 \
    CFLAGS="-ffile-prefix-map=/usr/local/cargo=/cargo" \
    RUSTFLAGS="--remap-path-prefix=/usr/local/cargo=/cargo --remap-path-prefix=/src=/weir"
COPY src src
# cargo trusts times of files, and the empty ones above are younger than a checkout's.
RUN --network=none find src -exec touch {} + && cargo build --frozen --release
RUN --network=none mkdir /image \
    && cp target/release/weir /image/ \
    && cp --parents --dereference $(ldd target/release/weir | grep -o '/[^ ]*') /image/ \
    && cp --parents --dereference /etc/ssl/certs/ca-certificates.crt /image/
COPY LICENSE /image/

FROM scratch AS controller
COPY --from=build /image /
USER 65532:65532
ENTRYPOINT ["/weir"]

FROM registry.k8s.io/build-image/distroless-iptables:v0.9.6@sha256:33f27a340efd1f0a0341bd85755f1752af00b27debaf2f2876a3ef5dcc07f84a AS node
# The same Debian release as `crates`, so of all that weir links only this is missing.
COPY --from=build /image/lib/*/libgcc_s.so.1 /usr/lib/
COPY --from=build /image/weir /image/LICENSE /
ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin
# Kubernetes gives the capability NET_ADMIN to no other user: see manifests/base/node/daemonset.yaml.
USER 0:0
ENTRYPOINT ["/weir"]
