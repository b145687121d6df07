"""etcd's v3 API: two clients of it, what they have in common, and what its refusals mean."""
