module example.com/cos/bindings/go/examples/server

go 1.24

require example.com/cos/bindings/go v0.0.0

replace example.com/cos/bindings/go => ../..
