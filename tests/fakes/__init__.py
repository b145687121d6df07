"""What stands in for kernel, etcd, data-plane process and time; held to the real ones by contract suites."""
