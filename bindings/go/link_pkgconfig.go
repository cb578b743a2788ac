// Links the libcos that pkg-config finds: go build -tags cos_pkgconfig.

//go:build cos_pkgconfig

package cos

// #cgo pkg-config: cos
import "C"
