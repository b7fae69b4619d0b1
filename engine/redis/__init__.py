"""How commands are done on Redis Cluster, or on one Redis with replicas; `engine/cluster.py` puts it together."""
