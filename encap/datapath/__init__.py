"""The process that carries packets in userspace, between a TUN device and UDP sockets."""
