import type { ImageConfig } from "./image.ts";

export type Protocol = "tcp" | "udp";

/** A port to publish. hostPort absent: the next free one of the host's range. hostAddress absent: all of the host's. */
export interface PublishRequest {
  containerPort: number;
  hostPort?: number;
  protocol: Protocol;
  hostAddress?: string;
}

/** A published port as the host applies it. hostAddress null: all of the host's addresses. */
export interface PortMapping {
  id: string;
  containerPort: number;
  hostPort: number;
  protocol: Protocol;
  hostAddress: string | null;
}

/** The ports that an image `EXPOSE`s and that are not given already. */
export function exposedPorts(image: ImageConfig, given: readonly PublishRequest[]): PublishRequest[] {
  return Object.keys(image.config?.ExposedPorts ?? {}).flatMap((text): PublishRequest[] => {
    const match = /^(\d{1,5})(?:\/(tcp|udp))?$/.exec(text);
    const containerPort = Number(match?.[1]);
    const protocol = match?.[2] === "udp" ? "udp" : "tcp";
    const already = given.some((port) => port.containerPort === containerPort && port.protocol === protocol);
    return match === null || already || containerPort < 1 || containerPort > 65_535
      ? []
      : [{ containerPort, protocol }];
  });
}
