# The program alone, static, with all stores: `docker build -t meltano-serializer .`
FROM rust:1.95-alpine AS build
RUN apk add --no-cache musl-dev tzdata
WORKDIR /source
COPY . .
# With `--target`, the flags do not apply to programs that run during the build.
RUN target=$(rustc -vV | sed -n 's/^host: //p') && \
    RUSTFLAGS='-Crelocation-model=static -Ctarget-feature=+crt-static' \
    cargo build --release --locked --features full --target "$target" && \
    cp "target/$target/release/serializer" /serializer

FROM scratch
COPY --from=build /serializer /serializer
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /usr/share/zoneinfo /usr/share/zoneinfo
ENTRYPOINT ["/serializer"]
