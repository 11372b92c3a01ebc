import { expect, test } from "bun:test";
import { broadcastAddresses } from "./broadcast.ts";

const v4 = (address: string, netmask: string) => ({
  address,
  netmask,
  family: "IPv4" as const,
  mac: "",
  internal: false,
  cidr: null,
});

test("of each network, once; none of networks of one or two addresses, none of IPv6", () => {
  expect(
    broadcastAddresses({
      eth0: [
        v4("10.1.2.3", "255.255.255.0"),
        v4("10.1.2.4", "255.255.255.0"),
        v4("10.96.0.7", "255.255.0.0"),
      ],
      tun0: [v4("10.9.0.1", "255.255.255.254")],
      ppp0: [v4("10.8.0.1", "255.255.255.255")],
      wg0: [v4("10.7.0.1", "255.255.255.252")],
      six: [
        {
          address: "fd00::1",
          netmask: "ffff::",
          family: "IPv6",
          mac: "",
          internal: false,
          cidr: null,
          scopeid: 0,
        },
      ],
    }),
  ).toEqual(["10.1.2.255", "10.7.0.3", "10.96.255.255"]);
});
