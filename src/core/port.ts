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
