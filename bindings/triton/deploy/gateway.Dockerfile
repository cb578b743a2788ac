# The gateway, alone in an image without a shell. From the root of the repository:
#     docker build --file bindings/triton/deploy/gateway.Dockerfile --tag cos-gateway bindings/triton/gateway
FROM golang:1.24-bookworm AS build
WORKDIR /gateway
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags=-s -o /out/gateway .

FROM gcr.io/distroless/static-debian12:nonroot
COPY --from=build /out/gateway /gateway
EXPOSE 8080
ENTRYPOINT ["/gateway"]
