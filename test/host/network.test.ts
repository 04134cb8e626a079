import { afterEach, describe, expect, test } from "vitest";
import { maxOpened, type Protection, protections } from "../../src/isolation/plan/firewall.ts";
import { flood, get, host, type NetworkOptions, outside, ping, TestNetwork } from "../support/network.ts";

const networks: TestNetwork[] = [];

async function network(options: NetworkOptions = {}): Promise<TestNetwork> {
  const one = await TestNetwork.create(options);
  networks.push(one);
  return one;
}

afterEach(async () => {
  for (const one of networks.splice(0)) await one.end();
});

const controlled = new Set<Protection>();

/** A test of a protection, on and off: on, nothing may come through; off, the probe must succeed. */
function control(
  protection: Protection,
  name: string,
  arrange: (net: TestNetwork) => Promise<() => Promise<boolean>>,
  off: Protection[] = [],
): void {
  controlled.add(protection);
  test(name, async () => {
    const net = await network({ without: off });
    const probe = await arrange(net);
    expect(await probe()).toBe(false);
    await net.worker.call("weaken", [...off, protection]);
    expect(await probe()).toBe(true);
  });
}

describe("what containers reach", () => {
  test("members of a project reach each other over IPv4 and IPv6", async () => {
    const net = await network();
    await net.container(0, "prj_a");
    await net.container(1, "prj_a");
    await net.serve(1, "one", "80");
    const { ipv4, ipv6 } = net.addresses(1);
    expect(await net.inside(0, ...get(ipv4, 80))).toEqual({ code: 0, out: "one" });
    expect(await net.inside(0, ...get(ipv6, 80))).toEqual({ code: 0, out: "one" });
    expect((await net.inside(0, ...get(ipv4, 80, "cgi-bin/peer"))).out).toContain(net.addresses(0).ipv4);
  });

  for (const family of ["ipv4", "ipv6"] as const) {
    control("members", `not another project's container (${family})`, async (net) => {
      await net.container(0, "prj_a");
      await net.container(1, "prj_b");
      await net.serve(1, "other", "80");
      return async () => (await net.inside(0, ...get(net.addresses(1)[family], 80))).out === "other";
    });
  }

  for (const address of [host.public4, host.public6]) {
    control("host", `not the host (${address})`, async (net) => {
      await net.container(0, "prj_a");
      await net.serve("host", "host", "5432");
      return async () => (await net.inside(0, ...get(address, 5432))).out === "host";
    });
  }

  test("the outside, with the host's address, if it may", async () => {
    const net = await network();
    await net.container(0, "prj_a");
    await net.container(1, "prj_a", false);
    await net.serve("outside", "outside", "80");
    for (const [address, source] of [
      [outside.public4, host.public4],
      [outside.public6, host.public6],
    ] as const) {
      expect(await net.inside(0, ...get(address, 80))).toEqual({ code: 0, out: "outside" });
      expect((await net.inside(0, ...get(address, 80, "cgi-bin/peer"))).out).toContain(source);
      expect((await net.inside(1, ...get(address, 80))).code).not.toBe(0);
    }
  });

  test("the outside over a link of smaller packets than theirs, without its help", async () => {
    const net = await network();
    await net.container(0, "prj_a");
    await net.serve("outside", "outside", "80");
    await net.host.run("ip", "link", "set", "uplink", "mtu", "1400");
    await net.outside.run("nft", "add table inet seen; add chain inet seen c { type filter hook input priority 300; }");
    const asked = ["1340", "1360", "!= { 1340, 1360 }"];
    for (const size of asked) {
      await net.outside.run("nft", `add rule inet seen c tcp flags syn tcp option maxseg size ${size} counter`);
    }
    for (const address of [outside.public4, outside.public6]) {
      expect((await net.inside(0, ...get(address, 80))).out).toBe("outside");
    }
    const { out } = await net.outside.run("nft", "list", "table", "inet", "seen");
    expect([...out.matchAll(/packets (\d+)/g)].map(([, packets]) => packets)).toEqual(["1", "1", "0"]);
  });

  control("closed", "not private, shared, link-local and metadata addresses", async (net) => {
    await net.container(0, "prj_a");
    await net.serve("outside", "outside", "80");
    return async () => {
      const answers = await Promise.all(outside.closed.map((address) => net.inside(0, ...get(address, 80))));
      const reached = answers.map(({ out }) => out === "outside");
      expect(new Set(reached).size).toBe(1);
      return reached.every(Boolean);
    };
  });

  test("a private name server, and only its port 53", async () => {
    const net = await network({ resolvers: ["10.1.1.1", "fd99::9"] });
    await net.container(0, "prj_a");
    await net.serve("outside", "names", "53");
    await net.serve("outside", "more", "54");
    expect((await net.inside(0, ...get("10.1.1.1", 53))).out).toBe("names");
    expect((await net.inside(0, ...get("fd99::9", 53))).out).toBe("names");
    expect((await net.inside(0, ...get("10.1.1.1", 54))).code).not.toBe(0);
    expect((await net.inside(0, ...get("192.168.7.7", 53))).code).not.toBe(0);
  });

  test("private networks that the operator allows, and no others", async () => {
    const net = await network({ allowed: ["10.1.1.1/9", "10.1.0.0/16", "203.0.113.1", "fd99::/64"] });
    await net.container(0, "prj_a");
    await net.container(1, "prj_a", false);
    await net.serve("outside", "outside", "80");
    for (const address of ["10.1.1.1", "fd99::9"]) {
      expect((await net.inside(0, ...get(address, 80))).out).toBe("outside");
      expect((await net.inside(1, ...get(address, 80))).code).not.toBe(0);
    }
    expect((await net.inside(0, ...get("192.168.7.7", 80))).code).not.toBe(0);
    // The host itself stays out of reach.
    await net.serve("host", "host", "5432");
    expect((await net.inside(0, ...get(host.public4, 5432))).code).not.toBe(0);
  });
});

controlled.add("flood");
test("one container's connections don't fill the host's table", async () => {
  const net = await network();
  await net.container(0, "prj_a");
  await net.container(1, "prj_b");
  await net.serve("outside", "outside", "80");
  // Unanswered, so that nothing takes them out of the table again.
  await net.outside.run("nft", "add table inet q; add chain inet q i { type filter hook input priority 0; }");
  await net.outside.run("nft", "add", "rule", "inet", "q", "i", "meta", "l4proto", "udp", "drop");
  const tracked = async (): Promise<number> =>
    Number((await net.host.run("sysctl", "-n", "net.netfilter.nf_conntrack_count")).out);
  await net.inside(0, ...flood(outside.public4, maxOpened + 1000));
  expect(await tracked()).toBeGreaterThan(maxOpened - 10);
  expect(await tracked()).toBeLessThan(maxOpened + 50);
  expect((await net.inside(0, ...get(outside.public4, 80))).code).not.toBe(0);
  expect((await net.inside(1, ...get(outside.public4, 80))).out).toBe("outside");
  await net.worker.call("weaken", ["flood"]);
  await net.inside(0, ...flood(outside.public4, maxOpened + 1000));
  expect(await tracked()).toBeGreaterThan(maxOpened + 500);
});

describe("what reaches containers", () => {
  control("inward", "nothing from the wire by itself", async (net) => {
    await net.container(0, "prj_a");
    await net.serve(0, "inside", "80");
    const { ipv4, ipv6 } = net.addresses(0);
    return async () => {
      const over4 = (await net.outside.run(...get(ipv4, 80))).out === "inside";
      const over6 = (await net.outside.run(...get(ipv6, 80))).out === "inside";
      expect(over4).toBe(over6);
      return over4;
    };
  });

  test("the host itself", async () => {
    const net = await network();
    await net.container(0, "prj_a");
    await net.serve(0, "inside", "80");
    expect((await net.host.run(...get(net.addresses(0).ipv4, 80))).out).toBe("inside");
    expect((await net.host.run(...get(net.addresses(0).ipv6, 80))).out).toBe("inside");
  });
});

describe("forging", () => {
  for (const [version, forged, family] of [
    ["IPv4", "192.0.2.66", "ipv4"],
    ["IPv6", "2001:db8:66::66", "ipv6"],
  ] as const) {
    control("source", `an ${version} source that is not the container's own goes nowhere`, async (net) => {
      await net.container(0, "prj_a");
      await net.container(1, "prj_a");
      // The kernel's own check of sources has to be off to see what ours does.
      for (const link of ["all", net.addresses(0).veth])
        await net.host.run("sysctl", "-qw", `net.ipv4.conf.${link}.rp_filter=0`);
      const arrived = await net.count(1, `${family === "ipv4" ? "ip" : "ip6"} saddr ${forged}`);
      await net.inside(0, "ip", "addr", "add", forged, "dev", "eth0", ...(family === "ipv6" ? ["nodad"] : []));
      return async () => {
        await net.inside(0, ...ping(net.addresses(1)[family], "-I", forged));
        return (await arrived()) > 0;
      };
    });
  }

  test("a reverse path filter stands behind", async () => {
    const net = await network();
    await net.container(0, "prj_a");
    const { veth } = net.addresses(0);
    expect((await net.host.run("sysctl", "-n", `net.ipv4.conf.${veth}.rp_filter`)).out).toBe("1\n");
  });

  control(
    "loopback",
    "a packet to 127.0.0.1 from a container does not reach the host's loopback",
    async (net) => {
      await net.container(0, "prj_a");
      const arrived = await net.count("host", `iifname ${net.addresses(0).veth} ip daddr 127.0.0.1`);
      // What a container would have to do to its own routes, if it could.
      await net.inside(0, "sysctl", "-qw", "net.ipv4.conf.eth0.route_localnet=1");
      for (const local of ["127.0.0.0/8", "127.0.0.1"])
        await net.inside(0, ..."ip route del local LOCAL dev lo table local".replace("LOCAL", local).split(" "));
      const route = `ip route add 127.0.0.1 via 169.254.1.1 dev eth0 onlink src ${net.addresses(0).ipv4}`;
      await net.inside(0, ...route.split(" "));
      return async () => {
        await net.inside(0, ...get("127.0.0.1", 5432));
        return (await arrived()) > 0;
      };
    },
    ["host"],
  );

  test("ARP and neighbour discovery change nothing", async () => {
    const net = await network();
    await net.container(0, "prj_a");
    await net.container(1, "prj_a");
    const neighbours = async (): Promise<string> => (await net.host.run("ip", "neigh", "show", "nud", "permanent")).out;
    const before = await neighbours();
    const victim = net.addresses(1).ipv4;
    await net.inside(0, "ip", "addr", "add", victim, "dev", "eth0");
    await net.inside(0, "busybox", "arping", "-U", "-c", "2", "-w", "2", "-I", "eth0", victim);
    const asked = await net.inside(0, "busybox", "arping", "-c", "1", "-w", "1", "-I", "eth0", host.public4);
    expect(asked.out).toContain("Received 0 response");
    expect(await neighbours()).toBe(before);
  });
});

describe("links", () => {
  test("inside: one link, its addresses, default routes, and what the kernel lets any user do", async () => {
    const net = await network();
    await net.container(5, "prj_a");
    const { ipv4, ipv6 } = net.addresses(5);
    const all = await net.inside(5, "sh", "-c", "ip -o addr; ip route; ip -6 route; ip -o link");
    expect(all.out).toContain(`inet ${ipv4}/32`);
    expect(all.out).toContain(`inet6 ${ipv6}/128`);
    expect(all.out).toContain("default via 169.254.1.1 dev eth0");
    expect(all.out).toContain("default via fe80::1 dev eth0");
    expect(all.out.match(/LOWER_UP/g)).toHaveLength(2);
    const settings = ["net.ipv4.ping_group_range", "net.ipv4.ip_unprivileged_port_start"];
    const { out } = await net.inside(5, "sysctl", "-n", ...settings);
    // As the initial user namespace sees it: the container's ids 0 to 65535.
    expect(out).toBe(`${700_000_000 + 5 * 65_536}\t${700_000_000 + 6 * 65_536 - 1}\n0\n`);
  });

  test("detach removes all, any number of times, and what never was", async () => {
    const net = await network();
    await net.container(0, "prj_a");
    await net.container(2046, "prj_a");
    expect((await net.state()).links.sort()).toEqual([0, 2046]);
    for (const slot of [0, 2046, 2046, 9]) await net.worker.call("detach", slot);
    for (const slot of [0, 2046]) await net.worker.call("expel", slot);
    expect(await net.state()).toEqual({ links: [], slots: [], ports: [] });
    const left = (await net.host.run("sh", "-c", "ip route; ip -6 route; ip neigh; ip link")).out;
    expect(left).not.toContain(`bt${net.scope.instance}`);
    // Addresses that no container has are answered at once, not sent to the default route.
    for (const family of ["ipv4", "ipv6"] as const)
      expect((await net.host.run("ip", "route", "get", net.addresses(0)[family])).out).toMatch(/No route to host/);
  });

  test("closing the namespaces removes the link too", async () => {
    const net = await network();
    await net.container(0, "prj_a");
    await net.worker.call("close", 0);
    await expect.poll(async () => (await net.state()).links, { timeout: 20_000 }).toEqual([]);
  });

  test("down leaves nothing but forwarding", async () => {
    const net = await network();
    await net.container(0, "prj_a");
    await net.container(1, "prj_b");
    await net.worker.call("down");
    const left = (await net.host.run("sh", "-c", "ip route; ip -6 route; ip neigh; ip link; nft list ruleset")).out;
    expect(left).not.toMatch(/10\.88\.|bt[0-9a-f]{6}|berth_/);
  });
});

test("every protection of the network has a control", () => {
  expect(controlled).toEqual(new Set(protections));
});
