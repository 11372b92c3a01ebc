// Command kubeapi is a stock kube-apiserver whose etcd runs in the same process: the Kubernetes API that
// istiod reads in the interop tests, without a cluster and without containers.
//
// ETCD_DIR (the data folder), ETCD_CLIENT_PORT and ETCD_PEER_PORT (on 127.0.0.1) come from the environment,
// so that several can run side by side; everything else is a flag of kube-apiserver.
package main

import (
	"log"
	"net/url"
	"os"

	"go.etcd.io/etcd/server/v3/embed"
	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

// loopback gives the URL list of a port on 127.0.0.1 that an environment variable names.
func loopback(variable string) []url.URL {
	port := os.Getenv(variable)
	if port == "" {
		log.Fatalf("kubeapi: set %s to a free port", variable)
	}
	return []url.URL{{Scheme: "http", Host: "127.0.0.1:" + port}}
}

func main() {
	config := embed.NewConfig()
	config.Dir = os.Getenv("ETCD_DIR")
	config.LogLevel = "error"
	config.UnsafeNoFsync = true // the data dies with the test
	config.QuotaBackendBytes = 4 << 30
	config.ListenClientUrls = loopback("ETCD_CLIENT_PORT")
	config.AdvertiseClientUrls = config.ListenClientUrls
	config.ListenPeerUrls = loopback("ETCD_PEER_PORT")
	config.AdvertisePeerUrls = config.ListenPeerUrls
	config.InitialCluster = config.InitialClusterFromName(config.Name)

	etcd, err := embed.StartEtcd(config)
	if err != nil {
		log.Fatalf("kubeapi: etcd does not start: %v", err)
	}
	<-etcd.Server.ReadyNotify()
	os.Exit(cli.Run(app.NewAPIServerCommand()))
}
