module observe

go 1.26.0

require github.com/containerd/go-cni v1.1.10

require github.com/containernetworking/cni v1.2.3 // indirect
