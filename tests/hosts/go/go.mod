module example.com/cos/tests/hosts/go

go 1.24

require (
	example.com/cos/bindings/go v0.0.0
	github.com/yalue/onnxruntime_go v1.27.0
)

replace example.com/cos/bindings/go => ../../../bindings/go
