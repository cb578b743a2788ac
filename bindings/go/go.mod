module example.com/cos/bindings/go

go 1.24
