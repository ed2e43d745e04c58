// A stand-in for a root helper as it is run today: one JSON request a connection, and for each step of it the program
// that a person would type. It is here to be measured against, and has what costs time: the same encoding, the same
// looks at paths and processes, the same programs in the same order. It writes no log.
//
//	today SOCKET UID
//
// UID is the owner's: he and root may call. The methods are those that `bench/src/today.rs` measures.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

const (
	stateDir   = "/var/lib/banger"
	runtimeDir = "/run/banger"
)

var owner int

type request struct {
	Version int             `json:"version"`
	Method  string          `json:"method"`
	Params  json.RawMessage `json:"params"`
	OpID    string          `json:"op_id"`
}

type failure struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	OpID    string `json:"op_id,omitempty"`
}

type reply struct {
	OK     bool            `json:"ok"`
	Result json.RawMessage `json:"result,omitempty"`
	Error  *failure        `json:"error,omitempty"`
}

func main() {
	if err := serve(); err != nil {
		fmt.Fprintln(os.Stderr, "today:", err)
		os.Exit(1)
	}
}

func serve() (err error) {
	if len(os.Args) != 3 {
		return errors.New("usage: today SOCKET UID")
	}
	if owner, err = strconv.Atoi(os.Args[2]); err != nil {
		return err
	}
	listener, err := net.Listen("unix", os.Args[1])
	if err != nil {
		return err
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go answer(conn.(*net.UnixConn))
	}
}

func answer(conn *net.UnixConn) {
	defer conn.Close()
	says := json.NewEncoder(conn)
	if err := mayCall(conn); err != nil {
		says.Encode(reply{Error: &failure{Code: "unauthorized", Message: err.Error()}})
		return
	}
	var asked request
	if err := json.NewDecoder(conn).Decode(&asked); err != nil {
		says.Encode(reply{Error: &failure{Code: "bad_request", Message: err.Error()}})
		return
	}
	result, err := call(asked)
	var text []byte
	if err == nil {
		text, err = json.Marshal(result)
	}
	if err != nil {
		says.Encode(reply{Error: &failure{"operation_failed", err.Error(), asked.OpID}})
		return
	}
	says.Encode(reply{OK: true, Result: text})
}

func mayCall(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var peer *syscall.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) {
		peer, failed = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return err
	}
	if uid := int(peer.Uid); uid != 0 && uid != owner {
		return fmt.Errorf("uid %d may not call", uid)
	}
	return nil
}

type none struct{}

func call(asked request) (any, error) {
	switch asked.Method {
	case "priv.ensure_bridge":
		return with(asked, ensureBridge)
	case "priv.create_tap":
		return with(asked, createTap)
	case "priv.delete_tap":
		return with(asked, deleteTap)
	case "priv.ensure_nat":
		return with(asked, ensureNat)
	case "priv.clear_resolver_routing":
		return with(asked, clearResolver)
	case "priv.read_ext4_file":
		return with(asked, readFile)
	case "priv.write_ext4_files":
		return with(asked, writeFiles)
	case "priv.ensure_socket_access":
		return with(asked, socketAccess)
	case "priv.find_firecracker_pid":
		return with(asked, findPid)
	case "priv.process_running":
		return with(asked, running)
	case "priv.kill_process":
		return with(asked, kill)
	}
	return nil, fmt.Errorf("%s is not measured here", asked.Method)
}

func with[P, R any](asked request, act func(P) (R, error)) (any, error) {
	var params P
	if err := json.Unmarshal(asked.Params, &params); err != nil {
		return nil, err
	}
	return act(params)
}

// run starts a program, found by PATH each time, and waits for it; what it wrote to its standard output.
func run(program string, arguments ...string) ([]byte, error) {
	var out, said bytes.Buffer
	command := exec.Command(program, arguments...)
	command.Stdout, command.Stderr = &out, &said
	if err := command.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", command, err, said.String())
	}
	return out.Bytes(), nil
}

// each runs programs one after the other, until one fails.
func each(lines ...[]string) error {
	for _, line := range lines {
		if _, err := run(line[0], line[1:]...); err != nil {
			return err
		}
	}
	return nil
}

func words(format string, values ...any) []string {
	return strings.Fields(fmt.Sprintf(format, values...))
}

type bridge struct {
	Name    string `json:"bridge_name"`
	Address string `json:"bridge_ip"`
	Prefix  string `json:"cidr"`
}

func ensureBridge(asked bridge) (none, error) {
	if _, err := run("ip", "link", "show", asked.Name); err == nil {
		return none{}, each(words("ip link set %s up", asked.Name))
	}
	return none{}, each(
		words("ip link add name %s type bridge", asked.Name),
		words("ip addr add %s/%s dev %s", asked.Address, asked.Prefix, asked.Name),
		words("ip link set %s up", asked.Name),
	)
}

type tap struct {
	bridge
	Tap string `json:"tap_name"`
}

func createTap(asked tap) (none, error) {
	if _, err := run("ip", "link", "show", asked.Tap); err == nil {
		if err := each(words("ip link del %s", asked.Tap)); err != nil {
			return none{}, err
		}
	}
	return none{}, each(
		words("ip tuntap add dev %s mode tap user %d group %d", asked.Tap, owner, owner),
		words("ip link set %s master %s", asked.Tap, asked.Name),
		words("ip link set %s up", asked.Tap),
		words("ip link set %s up", asked.Name),
	)
}

func deleteTap(asked tap) (none, error) {
	return none{}, each(words("ip link del %s", asked.Tap))
}

type nat struct {
	Guest  string `json:"guest_ip"`
	Tap    string `json:"tap"`
	Enable bool   `json:"enable"`
}

func ensureNat(asked nat) (none, error) {
	out, err := run("ip", "route", "show", "default")
	if err != nil {
		return none{}, err
	}
	_, rest, _ := strings.Cut(string(out), " dev ")
	route := strings.Fields(rest)
	if len(route) == 0 {
		return none{}, errors.New("there is no default route")
	}
	uplink := route[0]
	if asked.Enable {
		// Today it is net.ipv4.ip_forward, which would open the host for both that are measured: the same program
		// with the same work.
		if err := each(words("sysctl -w net.ipv4.conf.lo.forwarding=1")); err != nil {
			return none{}, err
		}
	}
	for _, rule := range [][3]string{
		{"nat", "POSTROUTING", fmt.Sprintf("-s %s/32 -o %s -j MASQUERADE", asked.Guest, uplink)},
		{"filter", "FORWARD", fmt.Sprintf("-i %s -o %s -j ACCEPT", asked.Tap, uplink)},
		{"filter", "FORWARD", fmt.Sprintf("-i %s -o %s -m state --state RELATED,ESTABLISHED -j ACCEPT", uplink, asked.Tap)},
	} {
		line := func(what string) []string {
			return words("iptables -t %s %s %s %s", rule[0], what, rule[1], rule[2])
		}
		is := each(line("-C")) == nil
		switch {
		case asked.Enable && !is:
			err = each(line("-A"))
		case !asked.Enable && is:
			err = each(line("-D"))
		}
		if err != nil {
			return none{}, err
		}
	}
	return none{}, nil
}

func clearResolver(asked bridge) (none, error) {
	if asked.Name == "" {
		return none{}, nil
	}
	return none{}, each(words("resolvectl revert %s", asked.Name))
}

type image struct {
	Path  string `json:"image_path"`
	Guest string `json:"guest_path"`
	Files []file `json:"files"`
}

type file struct {
	Path string `json:"guest_path"`
	Data []byte `json:"data"`
	Mode uint32 `json:"mode"`
}

type content struct {
	Data []byte `json:"data"`
}

func readFile(asked image) (content, error) {
	if err := below(asked.Path, stateDir); err != nil {
		return content{}, err
	}
	data, err := run("debugfs", "-R", "cat "+asked.Guest, asked.Path)
	return content{Data: data}, err
}

func writeFiles(asked image) (none, error) {
	if err := below(asked.Path, stateDir); err != nil {
		return none{}, err
	}
	for _, file := range asked.Files {
		if err := writeFile(asked.Path, file); err != nil {
			return none{}, err
		}
	}
	return none{}, nil
}

// writeFile takes the old file away, copies the new one in, and sets its mode and owner.
func writeFile(image string, asked file) error {
	data, err := keep(asked.Data)
	if err != nil {
		return err
	}
	defer os.Remove(data)
	fields, err := keep([]byte(fmt.Sprintf(
		"set_inode_field %[1]s mode 0%[2]o\nset_inode_field %[1]s uid 0\nset_inode_field %[1]s gid 0\n",
		asked.Path, syscall.S_IFREG|asked.Mode,
	)))
	if err != nil {
		return err
	}
	defer os.Remove(fields)
	target := image + ":" + asked.Path
	// It fails where there is no such file.
	_ = each([]string{"e2rm", target})
	return each([]string{"e2cp", data, target}, []string{"debugfs", "-w", "-f", fields, image})
}

// keep puts bytes into a file of their own.
func keep(data []byte) (string, error) {
	file, err := os.CreateTemp("", "today-")
	if err != nil {
		return "", err
	}
	_, err = file.Write(data)
	if closed := file.Close(); err == nil {
		err = closed
	}
	return file.Name(), err
}

// below refuses a path outside of a directory, and one with a link on its way from there.
func below(path, root string) error {
	path = filepath.Clean(path)
	rest := strings.TrimPrefix(path, root+"/")
	if rest == path {
		return fmt.Errorf("%q is not below %s", path, root)
	}
	at := root
	for _, name := range strings.Split(rest, "/") {
		at = filepath.Join(at, name)
		switch facts, err := os.Lstat(at); {
		case os.IsNotExist(err):
			return nil
		case err != nil:
			return err
		case facts.Mode()&os.ModeSymlink != 0:
			return fmt.Errorf("%q is a link", at)
		}
	}
	return nil
}

func socketAccess(asked struct {
	Path string `json:"socket_path"`
}) (none, error) {
	const openPath, emptyPath = 0x200000, 0x1000
	if err := below(asked.Path, runtimeDir); err != nil {
		return none{}, err
	}
	if _, err := os.Lstat(asked.Path); err != nil {
		return none{}, err
	}
	fd, err := syscall.Open(asked.Path, openPath|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0)
	if err != nil {
		return none{}, err
	}
	defer syscall.Close(fd)
	var facts syscall.Stat_t
	if err := syscall.Fstat(fd, &facts); err != nil {
		return none{}, err
	}
	if facts.Mode&syscall.S_IFMT != syscall.S_IFSOCK {
		return none{}, fmt.Errorf("%q is not a socket", asked.Path)
	}
	if err := syscall.Fchownat(fd, "", owner, owner, emptyPath); err != nil {
		return none{}, err
	}
	return none{}, os.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), 0o600)
}

type process struct {
	Pid    int    `json:"pid"`
	Socket string `json:"api_sock"`
}

func findPid(asked process) (any, error) {
	out, err := run("pgrep", "-n", "-f", asked.Socket)
	if err != nil {
		return nil, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	return struct {
		Pid int `json:"pid"`
	}{pid}, err
}

func running(asked process) (any, error) {
	line, err := commandLine(asked.Pid)
	is := err == nil && strings.Contains(line, "firecracker") && strings.Contains(line, asked.Socket)
	return struct {
		Running bool `json:"running"`
	}{is}, nil
}

func kill(asked process) (none, error) {
	line, err := commandLine(asked.Pid)
	if err != nil {
		return none{}, err
	}
	if !strings.Contains(line, "firecracker") {
		return none{}, fmt.Errorf("%d is no VMM", asked.Pid)
	}
	return none{}, each(words("kill -KILL %d", asked.Pid))
}

// commandLine is a process's program and its arguments, with blanks between.
func commandLine(pid int) (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.ReplaceAll(string(text), "\x00", " "), err
}
