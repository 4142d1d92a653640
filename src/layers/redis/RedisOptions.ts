/**
 * How to reach Redis: one server, a master behind Sentinels, or a Redis Cluster.
 *
 * @since 0.2.0
 */
import type { ConnectionOptions } from "node:tls"
import * as Config from "effect/Config"
import type * as Duration from "effect/Duration"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import type { ClusterOptions, RedisOptions as IoredisOptions } from "ioredis"
import * as Setting from "../../services/internal/setting.ts"
import * as Validate from "../../services/internal/validate.ts"
import { InvalidInput } from "../../services/Reason.ts"

/**
 * Where a server listens. The port defaults to 6379, a Sentinel's to 26379.
 *
 * @since 0.2.0
 */
export interface Address {
  readonly host: string
  readonly port?: number | undefined
}

/**
 * Options of a connection. What the url does not say, the other options do.
 *
 * @since 0.2.0
 */
export interface RedisOptions {
  /** `redis://user:password@host:port/db`; `rediss://` for TLS. Default `redis://127.0.0.1:6379`. */
  readonly url?: string | Redacted.Redacted<string> | undefined
  readonly username?: string | undefined
  readonly password?: Redacted.Redacted<string> | undefined
  /** Number of the database. Default 0; a Redis Cluster has no other. */
  readonly db?: number | undefined
  /** `true`, or how to check and present certificates. Default: as the url's scheme says. */
  readonly tls?: boolean | ConnectionOptions | undefined
  /** Asks Sentinels for the master, instead of the url. */
  readonly sentinel?:
    | {
        readonly master: string
        readonly nodes: ReadonlyArray<Address>
        readonly username?: string | undefined
        readonly password?: Redacted.Redacted<string> | undefined
        /** Default: as for the master. */
        readonly tls?: boolean | ConnectionOptions | undefined
      }
    | undefined
  /** Connects to a Redis Cluster through any of these nodes, instead of the url. */
  readonly cluster?: { readonly nodes: ReadonlyArray<Address> } | undefined
  /**
   * Where to reach servers that Sentinels or the nodes of a Redis Cluster tell of by addresses of their own, as
   * behind NAT: `{ "10.0.0.1:6379": { host: "redis.example", port: 7001 } }`.
   */
  readonly natMap?: Readonly<Record<string, Address>> | undefined
  /**
   * Shown by `CLIENT LIST`, where the default is `"cohort"`. Where one is given, `Health` and the metrics of the
   * connection have it as well: give it when a process has several.
   */
  readonly name?: string | undefined
  /** `true` builds the layer before Redis is reached; `false` (default) waits for it, and fails after `timeout`. */
  readonly lazy?: boolean | undefined
  /**
   * Within which an operation ends, connected or not; also how long a silent
   * connection is trusted. Default 5 seconds.
   */
  readonly timeout?: Duration.Input | undefined
  /**
   * When to try again after the connection is lost; while an operation waits for it, every tenth of `timeout` as
   * well, which does not count. Its delays must not need waiting to compute. When it ends, the connection is closed
   * for good. Default: from 50 ms, doubling, at most 2 seconds, jittered, for ever.
   */
  readonly reconnect?: Schedule.Schedule<unknown> | undefined
}

/**
 * The default of {@link RedisOptions.reconnect}.
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
    "REDIS_URL",
    "`redis://127.0.0.1:6379`",
    "`redis://user:password@host:port/db`; `rediss://` for TLS"
  ),
  sentinels: Setting.addresses("REDIS_SENTINELS", "none", "Sentinels that know the master, instead of the url"),
  master: Setting.text("REDIS_SENTINEL_MASTER", "`mymaster`", "What the Sentinels call it"),
  cluster: Setting.addresses("REDIS_CLUSTER", "none", "Nodes of a Redis Cluster, instead of the url"),
  username: Setting.text("REDIS_USERNAME", "the url's", "User"),
  password: Setting.secret("REDIS_PASSWORD", "the url's", "Password"),
  tls: Setting.boolean("REDIS_TLS", "the url's", "Whether to use TLS"),
  timeout: Setting.duration("REDIS_TIMEOUT", "`5 seconds`", "Within which every operation ends, connected or not")
}

const variables: Readonly<Record<string, string>> = {
  "sentinel.master": settings.master.name,
  sentinel: settings.sentinels.name,
  cluster: settings.cluster.name
}

/**
 * The options that the environment gives: `REDIS_URL`, or else `REDIS_SENTINELS`
 * (`host:port,…`) with `REDIS_SENTINEL_MASTER`, or else `REDIS_CLUSTER`
 * (`host:port,…`); with `REDIS_USERNAME`, `REDIS_PASSWORD`, `REDIS_TLS`
 * (`true`), `REDIS_TIMEOUT`. What is wrong fails, named.
 *
 * @since 0.2.0
 */
export const config: Config.Config<RedisOptions> = Config.flatMap(
  Config.map(
    Setting.all(settings),
    ({ cluster, master = "mymaster", sentinels, ...options }): RedisOptions => ({
      ...options,
      ...(sentinels !== undefined && { sentinel: { master, nodes: sentinels } }),
      ...(cluster !== undefined && { cluster: { nodes: cluster } })
    })
  ),
  (options) =>
    Setting.refuse<RedisOptions>(
      read,
      (field) => variables[field] ?? variables[field.split(".")[0]!] ?? `REDIS_${field.toUpperCase()}`
    )(options)
)

/** Whether it was refused by a master that is none any longer. Redis 6.2 says so in the middle when it was a script. */
export const isReadOnly = (error: Error): boolean => /^READONLY |-READONLY /.test(error.message)

/** Options read: what ioredis takes, and what the connection itself needs. */
export interface Settings {
  readonly timeout: number
  readonly lazy: boolean
  readonly reconnect: Schedule.Schedule<unknown>
  /** Of one server, also of each node of a Redis Cluster. */
  readonly client: IoredisOptions
  /** Nodes to start from, when it is a Redis Cluster. */
  readonly cluster: ReadonlyArray<{ readonly host: string; readonly port: number }> | undefined
}

/** Reads options, or tells which of them is wrong. */
export const read = (options: RedisOptions): Settings | InvalidInput => {
  const timeout = Validate.millis("timeout", options.timeout ?? "5 seconds")
  if (typeof timeout !== "number") return timeout
  const server = readUrl(options.url)
  if (server instanceof InvalidInput) return server
  const { cluster, sentinel } = options
  const db = options.db ?? server.db ?? 0
  const invalid =
    Validate.invalidOf(Validate.integer("db", db, 0)) ??
    (cluster !== undefined && sentinel !== undefined
      ? new InvalidInput({ field: "sentinel", detail: "excludes cluster" })
      : undefined) ??
    (cluster !== undefined && db !== 0
      ? new InvalidInput({ field: "db", detail: "a Redis Cluster has database 0 only" })
      : undefined) ??
    (sentinel === undefined
      ? undefined
      : (Validate.name("sentinel.master", sentinel.master) ?? invalidNodes("sentinel.nodes", sentinel.nodes))) ??
    (cluster === undefined ? undefined : invalidNodes("cluster.nodes", cluster.nodes)) ??
    Object.entries(options.natMap ?? {}).reduce<InvalidInput | undefined>(
      (invalid, [from, to]) => invalid ?? invalidAddress(`natMap[${JSON.stringify(from)}]`, to),
      undefined
    )
  if (invalid !== undefined) return invalid

  const tls = readTls(options.tls ?? server.tls)
  const sentinelTls = readTls(sentinel?.tls ?? options.tls ?? server.tls)
  const username = options.username ?? server.username
  const password = options.password === undefined ? server.password : Redacted.value(options.password)
  return {
    timeout,
    lazy: options.lazy ?? false,
    reconnect: options.reconnect ?? defaultReconnect,
    cluster: cluster?.nodes.map(({ host, port }) => ({ host, port: port ?? 6379 })),
    client: {
      ...(sentinel === undefined
        ? { host: server.host, port: server.port }
        : {
            name: sentinel.master,
            sentinels: sentinel.nodes.map(({ host, port }) => ({ host, port: port ?? 26379 })),
            ...(sentinel.username !== undefined && { sentinelUsername: sentinel.username }),
            ...(sentinel.password !== undefined && { sentinelPassword: Redacted.value(sentinel.password) }),
            ...(sentinelTls !== undefined && { sentinelTLS: sentinelTls }),
            // For the master, in spite of its name.
            enableTLSForSentinelMode: tls !== undefined
          }),
      ...(username !== undefined && { username }),
      ...(password !== undefined && { password }),
      ...(tls !== undefined && { tls }),
      ...(options.natMap !== undefined && {
        natMap: Object.fromEntries(
          Object.entries(options.natMap).map(([from, { host, port }]) => [from, { host, port: port ?? 6379 }])
        )
      }),
      db,
      connectionName: options.name ?? "cohort",
      connectTimeout: timeout,
      sentinelCommandTimeout: timeout,
      // A connection that owes an answer and is silent this long is taken for dead.
      socketTimeout: timeout,
      lazyConnect: true,
      // The link reconnects, and each request knows whether it may be repeated: ioredis does neither.
      retryStrategy: () => null,
      sentinelRetryStrategy: () => null,
      enableOfflineQueue: false,
      autoResendUnfulfilledCommands: false,
      autoResubscribe: false,
      // After a failover the old master still answers: go and find the new one.
      reconnectOnError: isReadOnly,
      // While Redis loads its data: it does not know well how long that will take.
      maxLoadingRetryTime: timeout / 10
    }
  }
}

/** Of the client for a whole Redis Cluster. */
export const clusterOptions = (settings: Settings) => {
  const { connectionName, connectTimeout, maxLoadingRetryTime, password, socketTimeout, tls, username } =
    settings.client
  return {
    lazyConnect: true,
    enableOfflineQueue: false,
    clusterRetryStrategy: () => null,
    // Would repeat what was on its way to a node that is lost.
    retryDelayOnFailover: 0,
    slotsRefreshTimeout: settings.timeout,
    // Names stay names: it is they that certificates are for.
    dnsLookup: (host, callback) => callback(null, host),
    ...(settings.client.natMap !== undefined && { natMap: settings.client.natMap }),
    redisOptions: {
      connectionName,
      connectTimeout,
      socketTimeout,
      maxLoadingRetryTime: maxLoadingRetryTime!,
      autoResendUnfulfilledCommands: false,
      // A command that a node has not answered by then fails, whatever is tried in between.
      commandTimeout: settings.timeout,
      username,
      password,
      tls
    }
  } satisfies ClusterOptions
}

interface Server {
  readonly host: string
  readonly port: number
  readonly username?: string
  readonly password?: string
  readonly db?: number
  readonly tls: boolean
}

const readUrl = (input: RedisOptions["url"]): Server | InvalidInput => {
  if (input === undefined) return { host: "127.0.0.1", port: 6379, tls: false }
  // What is wrong with it is said without repeating it: it may hold a password.
  const invalid = (detail: string) => new InvalidInput({ field: "url", detail })
  const text: unknown = Redacted.isRedacted(input) ? Redacted.value(input) : input
  if (typeof text !== "string" || !URL.canParse(text)) return invalid("must be like redis://user:password@host:port/db")
  const url = new URL(text)
  if (url.protocol !== "redis:" && url.protocol !== "rediss:") return invalid("must begin with redis:// or rediss://")
  const db = url.pathname.replace(/^\//, "")
  if (!/^\d*$/.test(db)) return invalid("the part after the host must be the number of a database")
  try {
    return {
      host: url.hostname === "" ? "127.0.0.1" : url.hostname.replace(/^\[(.*)\]$/, "$1"),
      port: url.port === "" ? 6379 : Number(url.port),
      tls: url.protocol === "rediss:",
      ...(url.username !== "" && { username: decodeURIComponent(url.username) }),
      ...(url.password !== "" && { password: decodeURIComponent(url.password) }),
      ...(db !== "" && { db: Number(db) })
    }
  } catch {
    return invalid("user name and password must be percent-encoded")
  }
}

const readTls = (tls: boolean | ConnectionOptions): ConnectionOptions | undefined =>
  tls === true ? {} : tls === false ? undefined : tls

const invalidNodes = (field: string, nodes: ReadonlyArray<Address>): InvalidInput | undefined => {
  if (nodes.length === 0) return new InvalidInput({ field, detail: "must name at least one node" })
  for (const node of nodes) {
    const invalid = invalidAddress(field, node)
    if (invalid !== undefined) return invalid
  }
  return undefined
}

const invalidAddress = (field: string, { host, port }: Address): InvalidInput | undefined =>
  Validate.name(`${field}.host`, host) ??
  (port === undefined ? undefined : Validate.invalidOf(Validate.integer(`${field}.port`, port, 1)))
