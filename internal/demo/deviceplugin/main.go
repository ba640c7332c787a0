// Command deviceplugin offers a real kubelet devices that nobody has: as a device
// plugin, and one as a DRA driver. Tests run it on nodes of a lab.
//
//	deviceplugin NODE RESOURCE DRIVER CLAIMED DEVICE...
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	dra "k8s.io/kubelet/pkg/apis/dra/v1"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

const (
	kubelet     = "/var/lib/kubelet"
	deviceInfos = "/var/run/k8s.cni.cncf.io/devinfo/dp"
)

func main() {
	if len(os.Args) < 5 {
		fmt.Fprintln(os.Stderr, "deviceplugin NODE RESOURCE DRIVER CLAIMED DEVICE...")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3], os.Args[4], os.Args[5:]); err != nil {
		fmt.Fprintln(os.Stderr, "deviceplugin:", err)
		os.Exit(1)
	}
}

func run(node, resource, driver, claimed string, devices []string) error {
	for _, device := range append([]string{claimed}, devices...) {
		if err := tell(resource, device); err != nil {
			return err
		}
	}
	plugin, own := grpc.NewServer(), grpc.NewServer()
	v1beta1.RegisterDevicePluginServer(plugin, &devicePlugin{devices: devices})
	registration.RegisterRegistrationServer(own, &draDriver{node: node, name: driver})
	dra.RegisterDRAPluginServer(own, &draDriver{node: node, name: driver})
	var group errgroup.Group
	group.Go(func() error { return serve(plugin, filepath.Join(kubelet, "device-plugins", "braid.sock")) })
	group.Go(func() error { return serve(own, draSocket) })
	group.Go(func() error { return register(resource) })
	return group.Wait()
}

// draSocket is where the kubelet looks for plugins. This one is asked there,
// too.
const draSocket = kubelet + "/plugins_registry/braid.sock"

// tell writes what is to be known of a device.
func tell(resource, device string) error {
	if err := os.MkdirAll(deviceInfos, 0o755); err != nil {
		return err
	}
	name := strings.ReplaceAll(resource, "/", "-") + "-" + device + "-device.json"
	info := fmt.Sprintf(`{"type":"pci","version":"1.1.0","pci":{"pci-address":%q}}`, device)
	return os.WriteFile(filepath.Join(deviceInfos, name), []byte(info), 0o644)
}

func serve(s *grpc.Server, path string) error {
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	return s.Serve(l)
}

// register tells the kubelet of the device plugin, which it then asks.
func register(resource string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+v1beta1.KubeletSocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = v1beta1.NewRegistrationClient(conn).Register(ctx, &v1beta1.RegisterRequest{
		Version: v1beta1.Version, Endpoint: "braid.sock", ResourceName: resource, Options: &v1beta1.DevicePluginOptions{},
	}, grpc.WaitForReady(true))
	return err
}

type devicePlugin struct {
	v1beta1.UnimplementedDevicePluginServer
	devices []string
}

func (p *devicePlugin) GetDevicePluginOptions(context.Context, *v1beta1.Empty) (*v1beta1.DevicePluginOptions, error) {
	return &v1beta1.DevicePluginOptions{}, nil
}

// ListAndWatch lists the devices, which never change.
func (p *devicePlugin) ListAndWatch(_ *v1beta1.Empty, stream v1beta1.DevicePlugin_ListAndWatchServer) error {
	list := &v1beta1.ListAndWatchResponse{}
	for _, d := range p.devices {
		list.Devices = append(list.Devices, &v1beta1.Device{ID: d, Health: v1beta1.Healthy})
	}
	if err := stream.Send(list); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

// Allocate has nothing to add to the containers.
func (p *devicePlugin) Allocate(_ context.Context, r *v1beta1.AllocateRequest) (*v1beta1.AllocateResponse, error) {
	answer := &v1beta1.AllocateResponse{}
	for range r.GetContainerRequests() {
		answer.ContainerResponses = append(answer.ContainerResponses, &v1beta1.ContainerAllocateResponse{})
	}
	return answer, nil
}

// draDriver has a pool, named after its node, with the one device "claimed".
type draDriver struct {
	dra.UnimplementedDRAPluginServer
	registration.UnimplementedRegistrationServer
	node, name string
}

func (d *draDriver) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type: registration.DRAPlugin, Name: d.name, Endpoint: draSocket, SupportedVersions: []string{dra.DRAPluginService},
	}, nil
}

func (d *draDriver) NotifyRegistrationStatus(_ context.Context, s *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	fmt.Println("registered as a driver:", s.GetPluginRegistered(), s.GetError())
	return &registration.RegistrationStatusResponse{}, nil
}

func (d *draDriver) NodePrepareResources(_ context.Context, r *dra.NodePrepareResourcesRequest) (*dra.NodePrepareResourcesResponse, error) {
	answer := &dra.NodePrepareResourcesResponse{Claims: map[string]*dra.NodePrepareResourceResponse{}}
	for _, c := range r.GetClaims() {
		answer.Claims[c.GetUid()] = &dra.NodePrepareResourceResponse{Devices: []*dra.Device{{PoolName: d.node, DeviceName: "claimed"}}}
	}
	return answer, nil
}

func (d *draDriver) NodeUnprepareResources(_ context.Context, r *dra.NodeUnprepareResourcesRequest) (*dra.NodeUnprepareResourcesResponse, error) {
	answer := &dra.NodeUnprepareResourcesResponse{Claims: map[string]*dra.NodeUnprepareResourceResponse{}}
	for _, c := range r.GetClaims() {
		answer.Claims[c.GetUid()] = &dra.NodeUnprepareResourceResponse{}
	}
	return answer, nil
}
