"""Places a stack in a namespace of a Kubernetes cluster, by the official provider."""
