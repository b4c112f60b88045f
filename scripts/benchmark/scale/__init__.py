"""How flannelpy's control plane grows with the number of hosts: a swarm of simulated hosts on one real etcd."""
