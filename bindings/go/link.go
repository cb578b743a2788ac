//go:build !cos_pkgconfig

package cos

// #cgo LDFLAGS: -lcos
import "C"
