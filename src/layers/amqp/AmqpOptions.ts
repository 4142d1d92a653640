/**
 * How to reach RabbitMQ: one node, or any of a cluster's.
 *
 * @since 0.2.0
 */
import type { ConnectionOptions } from "node:tls"
import * as Config from "effect/Config"
import * as Duration from "effect/Duration"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Setting from "../../services/internal/setting.ts"
import * as Validate from "../../services/internal/validate.ts"
import { InvalidInput } from "../../services/Reason.ts"

/**
 * Where a node listens. The port defaults to 5672, with TLS to 5671.
 *
 * @since 0.2.0
 */
export interface Address {
  readonly host: string
  readonly port?: number | undefined
}

/**
 * Options of the connections. What the url does not say, the other options do.
 *
 * @since 0.2.0
 */
export interface AmqpOptions {
  /** `amqp://user:password@host:port/vhost`; `amqps://` for TLS. Default `amqp://guest:guest@127.0.0.1:5672`. */
  readonly url?: string | Redacted.Redacted<string> | undefined
  /** Nodes of a cluster, tried in turn, instead of the url's. */
  readonly nodes?: ReadonlyArray<Address> | undefined
  /** Default `"/"`. */
  readonly vhost?: string | undefined
  readonly username?: string | undefined
  readonly password?: Redacted.Redacted<string> | undefined
  /** `true`, or how to check and present certificates. Default: as the url's scheme says. */
  readonly tls?: boolean | ConnectionOptions | undefined
  /** Shown by `rabbitmqctl list_connections`, with the role. Default `"cohort"`. */
  readonly name?: string | undefined
  /** `true` builds the layer before RabbitMQ is reached; `false` (default) waits for it, and fails after `timeout`. */
  readonly lazy?: boolean | undefined
  /** Within which an operation ends, connected or not. Default 5 seconds. */
  readonly timeout?: Duration.Input | undefined
  /**
   * How often each side says that it is alive; in whole seconds, rounded up. One that is silent is taken for
   * dead after two to three of them. Default 5 seconds; RabbitMQ may want it shorter.
   */
  readonly heartbeat?: Duration.Input | undefined
  /**
   * When to try again after a connection is lost; while an operation waits for it, every tenth of `timeout` as
   * well, which does not count. Its delays must not need waiting to compute. When it ends, the connection is closed
   * for good. Default: from 50 ms, doubling, at most 2 seconds, jittered, for ever.
   */
  readonly reconnect?: Schedule.Schedule<unknown> | undefined
}

/**
 * The default of {@link AmqpOptions.reconnect}.
 *
 * @since 0.2.0
 */
export const defaultReconnect: Schedule.Schedule<unknown> = Schedule.min([
  Schedule.exponential("50 millis"),
  Schedule.spaced("2 seconds")
]).pipe(Schedule.jittered)

/** What the environment says. */
export const settings = {
  url: Setting.secret(
    "AMQP_URL",
    "`amqp://guest:guest@127.0.0.1:5672`",
    "`amqp://user:password@host:port/vhost`; `amqps://` for TLS"
  ),
  nodes: Setting.addresses("AMQP_NODES", "the url's", "Nodes of a cluster, tried in turn, instead of the url's"),
  vhost: Setting.text("AMQP_VHOST", "the url's, or `/`", "Virtual host"),
  username: Setting.text("AMQP_USERNAME", "the url's, or `guest`", "User"),
  password: Setting.secret("AMQP_PASSWORD", "the url's, or `guest`", "Password"),
  tls: Setting.boolean("AMQP_TLS", "the url's", "Whether to use TLS"),
  timeout: Setting.duration("AMQP_TIMEOUT", "`5 seconds`", "Within which every operation ends, connected or not"),
  heartbeat: Setting.duration(
    "AMQP_HEARTBEAT",
    "`5 seconds`",
    "How often each side says that it is alive; a silent one is taken for dead after two to three of them"
  )
}

/**
 * The options that the environment gives: `AMQP_URL`, or `AMQP_NODES` (`host:port,…`); with `AMQP_VHOST`,
 * `AMQP_USERNAME`, `AMQP_PASSWORD`, `AMQP_TLS` (`true`), `AMQP_TIMEOUT`, `AMQP_HEARTBEAT`. What is wrong fails, named.
 *
 * @since 0.2.0
 */
export const config: Config.Config<AmqpOptions> = Config.flatMap(Setting.all(settings), (options) =>
  Setting.refuse<AmqpOptions>(read, (field) => `AMQP_${field.split(".")[0]!.toUpperCase()}`)(options)
)

/** Options read: what amqplib takes, and what the connection itself needs. */
export interface Settings {
  readonly timeout: number
  readonly lazy: boolean
  readonly reconnect: Schedule.Schedule<unknown>
  readonly name: string
  readonly nodes: ReadonlyArray<{ readonly host: string; readonly port: number }>
  readonly username: string
  readonly password: string
  readonly vhost: string
  readonly tls: ConnectionOptions | undefined
  /** Seconds. */
  readonly heartbeat: number
}

/** Reads options, or tells which of them is wrong. */
export const read = (options: AmqpOptions): Settings | InvalidInput => {
  const url = readUrl(options.url)
  if (url instanceof InvalidInput) return url
  const timeout = Validate.millis("timeout", options.timeout ?? "5 seconds")
  const heartbeat = Validate.millis("heartbeat", options.heartbeat ?? url.heartbeat ?? "5 seconds")
  const vhost = options.vhost ?? url.vhost ?? "/"
  const nodes = options.nodes ?? [url]
  const invalid =
    Validate.invalidOf(timeout) ??
    Validate.invalidOf(heartbeat) ??
    Validate.name("vhost", vhost) ??
    (options.nodes === undefined ? undefined : invalidNodes(options.nodes))
  if (invalid !== undefined) return invalid
  const tls = readTls(options.tls ?? url.tls)
  return {
    timeout: timeout as number,
    lazy: options.lazy ?? false,
    reconnect: options.reconnect ?? defaultReconnect,
    name: options.name ?? "cohort",
    nodes: nodes.map(({ host, port }) => ({ host, port: port ?? (tls === undefined ? 5672 : 5671) })),
    username: options.username ?? url.username ?? "guest",
    password: options.password === undefined ? (url.password ?? "guest") : Redacted.value(options.password),
    vhost,
    tls,
    heartbeat: Math.min(Math.ceil((heartbeat as number) / 1_000), 65_535)
  }
}

interface Parts extends Address {
  readonly username?: string
  readonly password?: string
  readonly vhost?: string
  readonly heartbeat?: Duration.Duration
  readonly tls: boolean
}

const readUrl = (input: AmqpOptions["url"]): Parts | InvalidInput => {
  if (input === undefined) return { host: "127.0.0.1", tls: false }
  // What is wrong with it is said without repeating it: it may hold a password.
  const invalid = (detail: string) => new InvalidInput({ field: "url", detail })
  const text: unknown = Redacted.isRedacted(input) ? Redacted.value(input) : input
  if (typeof text !== "string" || !URL.canParse(text)) {
    return invalid("must be like amqp://user:password@host:port/vhost")
  }
  const url = new URL(text)
  if (url.protocol !== "amqp:" && url.protocol !== "amqps:") return invalid("must begin with amqp:// or amqps://")
  const path = url.pathname.replace(/^\//, "")
  if (path.includes("/")) return invalid("the part after the host must be one name, with / written as %2F")
  const heartbeat = url.searchParams.get("heartbeat")
  if (heartbeat !== null && !/^[1-9]\d*$/.test(heartbeat)) return invalid("heartbeat must be seconds")
  try {
    return {
      host: url.hostname === "" ? "127.0.0.1" : url.hostname.replace(/^\[(.*)\]$/, "$1"),
      tls: url.protocol === "amqps:",
      ...(url.port !== "" && { port: Number(url.port) }),
      ...(url.username !== "" && { username: decodeURIComponent(url.username) }),
      ...(url.password !== "" && { password: decodeURIComponent(url.password) }),
      ...(path !== "" && { vhost: decodeURIComponent(path) }),
      ...(heartbeat !== null && { heartbeat: Duration.seconds(Number(heartbeat)) })
    }
  } catch {
    return invalid("user name, password and vhost must be percent-encoded")
  }
}

const readTls = (tls: boolean | ConnectionOptions): ConnectionOptions | undefined =>
  tls === true ? {} : tls === false ? undefined : tls

const invalidNodes = (nodes: ReadonlyArray<Address>): InvalidInput | undefined => {
  if (nodes.length === 0) return new InvalidInput({ field: "nodes", detail: "must name at least one node" })
  for (const { host, port } of nodes) {
    const invalid =
      Validate.name("nodes.host", host) ??
      (port === undefined ? undefined : Validate.invalidOf(Validate.integer("nodes.port", port, 1)))
    if (invalid !== undefined) return invalid
  }
  return undefined
}
