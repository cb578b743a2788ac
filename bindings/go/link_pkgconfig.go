//go:build cos_pkgconfig

package cos

// #cgo pkg-config: cos
import "C"
