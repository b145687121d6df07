"""What the cluster says: network config and leases, kept in etcd in flannel's format."""
