// The official Pulumi plugin for Kubernetes, from its own module.
//
// Its own `main` embeds two files that its release makes out of those in the module. Here they lie
// beside the command instead.
package main

import (
	"log"
	"os"
	"path/filepath"

	"github.com/pulumi/pulumi-kubernetes/provider/v4/pkg/provider"
	"github.com/pulumi/pulumi-kubernetes/provider/v4/pkg/version"
)

func beside(name string) []byte {
	self, err := os.Executable()
	if err != nil {
		log.Fatal(err)
	}
	content, err := os.ReadFile(filepath.Join(filepath.Dir(self), name))
	if err != nil {
		log.Fatal(err)
	}
	return content
}

func main() {
	schema, mapping := beside("schema.json"), beside("terraform-mapping.json")
	provider.Serve("kubernetes", version.Version, schema, mapping)
}
