// Links libcos from the folders that the linker searches. This is the default.

//go:build !cos_pkgconfig

package cos

// #cgo LDFLAGS: -lcos
import "C"
