/**
 * Connections to Redis, through ioredis: one for commands, and one for
 * subscriptions that is opened when something is first subscribed.
 *
 * - Nothing hangs: every operation succeeds, or fails with `Unavailable`, within
 *   `timeout`. While Redis is away operations wait for it that long; what was on
 *   its way when the connection went fails at once, unless it may be repeated.
 * - Commands that are issued in one turn of the event loop go out in one write.
 * - Replies and messages are read as UTF-8.
 *
 * @since 0.2.0
 */
import type * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as SubscriptionRef from "effect/SubscriptionRef"
import { Cluster, Command, type RedisOptions as IoredisOptions, Redis } from "ioredis"
import * as Timers from "../../services/internal/Timers.ts"
import { InvalidInput, type Unavailable } from "../../services/Reason.ts"
import * as RedisLink from "./RedisLink.ts"
import { clusterOptions, config, type RedisOptions, read, type Settings } from "./RedisOptions.ts"
import type { RedisScript } from "./RedisScript.ts"
import * as RedisSubscriber from "./RedisSubscriber.ts"

/**
 * Where one connection stands. `idle`: not asked for yet. `closed`: given up, for good.
 *
 * @since 0.2.0
 */
export type LinkState = "idle" | "connecting" | "ready" | "reconnecting" | "closed"

/**
 * Where both connections stand.
 *
 * @since 0.2.0
 */
export interface State {
  readonly commands: LinkState
  readonly subscriptions: LinkState
}

/**
 * An argument of a command.
 *
 * @since 0.2.0
 */
export type Argument = string | number

/**
 * The connections of one process, shared by the stores on Redis.
 *
 * @since 0.2.0
 */
export class RedisConnection extends Context.Service<
  RedisConnection,
  {
    /** Whether it is a Redis Cluster, where the keys of one command must share a hash slot. */
    readonly isCluster: boolean
    /** Within which every operation ends, in milliseconds. */
    readonly timeout: number
    /**
     * Runs a command; its name is in lower case. `retry` says that twice is as good as once: it is
     * then repeated when the connection goes while it is on its way.
     */
    readonly send: <A = unknown>(
      command: string,
      args: ReadonlyArray<Argument>,
      options?: { readonly retry?: boolean }
    ) => Effect.Effect<A, Unavailable>
    /** Runs a script on keys of one hash slot. */
    readonly run: <A = unknown>(
      script: RedisScript,
      keys: ReadonlyArray<string>,
      args: ReadonlyArray<Argument>
    ) => Effect.Effect<A, Unavailable>
    /** Like `send`, by callback, for those who send for many. `resume` is called once, later. */
    readonly request: <A = unknown>(
      command: string,
      args: ReadonlyArray<Argument>,
      retry: boolean,
      resume: (result: Exit.Exit<A, Unavailable>) => void
    ) => void
    /** Like `run`, by callback. */
    readonly requestRun: <A = unknown>(
      script: RedisScript,
      keys: ReadonlyArray<string>,
      args: ReadonlyArray<Argument>,
      resume: (result: Exit.Exit<A, Unavailable>) => void
    ) => void
    /**
     * Hands what was sent in this turn to the operating system, and tells whether all of it is
     * there: what is survives the death of this process. Always `false` on a Redis Cluster.
     */
    readonly flush: () => boolean
    /**
     * Calls back with what is published to a channel, until the scope closes. Returns once Redis has
     * confirmed it. `onGap` is called after every reconnect, before any message after it.
     * Subscriptions to one channel share it. The callbacks must not throw.
     */
    readonly subscribe: RedisSubscriber.Subscribe
    /** Keys that match a glob pattern, in batches; may repeat, and may miss what comes or goes meanwhile. */
    readonly scan: (pattern: string) => Stream.Stream<ReadonlyArray<string>, Unavailable>
    readonly state: Effect.Effect<State>
    /** The state now, and every change of it. */
    readonly changes: Stream.Stream<State>
    /** A client like the one for commands that the caller owns, for what blocks a connection. Not connected yet. */
    readonly dedicated: () => Redis
  }
>()("cohort/layers/redis/RedisConnection") {}

/**
 * Connects; unless `lazy`, succeeds only when connected, within the timeout.
 *
 * @since 0.2.0
 */
export const make = (
  options: RedisOptions = {}
): Effect.Effect<RedisConnection["Service"], InvalidInput | Unavailable, Scope.Scope> =>
  Effect.gen(function* () {
    const settings = read(options)
    if (settings instanceof InvalidInput) return yield* settings
    const { timeout } = settings
    const timers = yield* Timers.make
    const runFork = Effect.runForkWith(yield* Effect.context<never>())

    const states = yield* SubscriptionRef.make<State>({ commands: "idle", subscriptions: "idle" })
    const note = (change: Partial<State>) => {
      runFork(SubscriptionRef.update(states, (state) => ({ ...state, ...change })))
    }
    const common = { timers, heartbeat: timeout / 2, reconnect: settings.reconnect }

    // --- subscriptions ---

    let subscriptions: RedisLink.Link<Redis> | undefined
    const subscriber = RedisSubscriber.make({ link: () => subscriptions!, timers, timeout })
    subscriptions = yield* RedisLink.make({
      ...common,
      role: "subscriptions",
      create: (retryStrategy) => createSubscriber(settings, retryStrategy, () => commands.client),
      onChange: (state) => {
        note({ subscriptions: state })
        if (state === "ready") subscriber.onReady()
        else if (state === "closed") subscriber.onClosed()
        else subscriber.onDown()
      }
    })

    // --- commands ---

    /** What waits for the connection, or has been sent after waiting for it. */
    interface Waiting {
      readonly command: string
      readonly args: ReadonlyArray<Argument>
      readonly retry: boolean
      readonly timer: Timers.Timer
      done: boolean
      readonly resume: (result: Exit.Exit<any, Unavailable>) => void
    }
    const waiting = new Set<Waiting>()

    const commands: RedisLink.Link<Redis | Cluster> = yield* RedisLink.make<Redis | Cluster>({
      ...common,
      role: "commands",
      create: (retryStrategy) => createClient(settings, retryStrategy),
      onChange: (state) => {
        note({ commands: state })
        if (state !== "ready" && state !== "closed") return
        const entries = [...waiting]
        waiting.clear()
        for (const entry of entries) {
          if (state === "ready") dispatch(entry)
          else end(entry, Exit.fail(notConnected()))
        }
      }
    })
    const { client } = commands

    const notConnected = () =>
      commands.state() === "closed"
        ? RedisLink.unavailable("the connection is closed", commands.lastError())
        : RedisLink.unavailable(
            `no answer within ${timeout} ms (${RedisLink.reasonOf(commands.lastError())})`,
            commands.lastError()
          )

    // One write for what is sent in one turn: writing is most of what a command costs.
    let corked: Redis["stream"] | undefined
    const uncork = () => {
      corked?.uncork()
      corked = undefined
    }
    const cork = () => {
      if (corked !== undefined || client instanceof Cluster) return
      corked = client.stream
      corked.cork()
      process.nextTick(uncork)
    }

    /** Now, on a connection that is ready. */
    const sendNow = (command: string, args: ReadonlyArray<Argument>): Promise<unknown> => {
      cork()
      const sent = new Command(command, args as Array<Argument>, utf8)
      client.sendCommand(sent)
      return sent.promise
    }

    const end = (entry: Waiting, result: Exit.Exit<unknown, Unavailable>) => {
      if (entry.done) return
      entry.done = true
      timers.cancel(entry.timer)
      entry.resume(result)
    }

    const dispatch = (entry: Waiting) => {
      sendNow(entry.command, entry.args).then(
        (reply) => end(entry, Exit.succeed(reply)),
        (error) => {
          if (entry.retry && !entry.done && isLost(error) && commands.state() !== "closed") waiting.add(entry)
          else end(entry, Exit.fail(RedisLink.unavailable(error.message, error)))
        }
      )
    }

    const wait = (
      command: string,
      args: ReadonlyArray<Argument>,
      retry: boolean,
      deadline: number,
      resume: (result: Exit.Exit<any, Unavailable>) => void
    ) => {
      const timer = timers.at(deadline, () => {
        waiting.delete(entry)
        end(entry, Exit.fail(notConnected()))
      })
      const entry: Waiting = { command, args, retry, timer, done: false, resume }
      if (commands.state() === "closed") return end(entry, Exit.fail(notConnected()))
      commands.connect()
      if (commands.isReady()) dispatch(entry)
      else waiting.add(entry)
    }

    const request = <A>(
      command: string,
      args: ReadonlyArray<Argument>,
      retry: boolean,
      resume: (result: Exit.Exit<A, Unavailable>) => void
    ): void => {
      if (!commands.isReady()) return wait(command, args, retry, timers.now() + timeout, resume)
      const start = retry ? timers.now() : 0
      sendNow(command, args).then(
        (reply) => resume(Exit.succeed(reply as A)),
        (error) => {
          if (retry && isLost(error)) wait(command, args, retry, start + timeout, resume)
          else resume(Exit.fail(RedisLink.unavailable(error.message, error)))
        }
      )
    }

    const requestRun = <A>(
      script: RedisScript,
      keys: ReadonlyArray<string>,
      args: ReadonlyArray<Argument>,
      resume: (result: Exit.Exit<A, Unavailable>) => void
    ): void => {
      const rest = [keys.length, ...keys, ...args]
      request<A>("evalsha", [script.sha, ...rest], script.retry, (result) => {
        if (result._tag === "Failure" && isUnknownScript(result)) {
          request("eval", [script.lua, ...rest], script.retry, resume)
        } else {
          resume(result)
        }
      })
    }

    if (!settings.lazy) {
      yield* Effect.callback<unknown, Unavailable>((resume) => request("ping", [], true, resume))
    }

    return RedisConnection.of({
      isCluster: client instanceof Cluster,
      timeout,
      send: (command, args, options) =>
        Effect.callback((resume) => request(command, args, options?.retry ?? false, resume)),
      run: (script, keys, args) => Effect.callback((resume) => requestRun(script, keys, args, resume)),
      request,
      requestRun,
      flush: () => {
        if (client instanceof Cluster || !commands.isReady()) return false
        uncork()
        return client.stream.writableLength === 0
      },
      subscribe: subscriber.subscribe,
      scan: (pattern) => scan(commands, pattern),
      state: SubscriptionRef.get(states),
      changes: SubscriptionRef.changes(states),
      dedicated: () =>
        createSubscriber(
          settings,
          () => null,
          () => client
        )
    })
  })

const utf8 = { replyEncoding: "utf8" } as const

/** Whether it was the connection that failed, and not the command. */
const isLost = (error: unknown): boolean => !(error instanceof Error && error.name === "ReplyError")

const isUnknownScript = (exit: Exit.Failure<unknown, Unavailable>): boolean =>
  exit.cause.reasons.some(
    (reason) =>
      reason._tag === "Fail" && reason.error.cause instanceof Error && reason.error.cause.message.startsWith("NOSCRIPT")
  )

const createClient = (settings: Settings, retryStrategy: (attempt: number) => number | null): Redis | Cluster =>
  settings.cluster === undefined
    ? open({ ...settings.client, enableOfflineQueue: false, retryStrategy, sentinelRetryStrategy: retryStrategy })
    : new Cluster([...settings.cluster], { ...clusterOptions(settings), clusterRetryStrategy: retryStrategy })

const open = (options: IoredisOptions): Redis => new Redis({ ...options, replyMapping: "legacy" })

/** A client of its own; on a Redis Cluster, of any node that is known, and another one after each failure. */
const createSubscriber = (
  settings: Settings,
  retryStrategy: (attempt: number) => number | null,
  commands: () => Redis | Cluster
): Redis => {
  const { cluster } = settings
  if (cluster === undefined) {
    return open({ ...settings.client, retryStrategy, sentinelRetryStrategy: retryStrategy })
  }
  let turn = 0
  const client = open({
    ...settings.client,
    ...cluster[0]!,
    retryStrategy: (attempt: number) => {
      const known = commands()
      const nodes = known instanceof Cluster ? known.nodes("all").map(({ options }) => options) : []
      const next = nodes.length === 0 ? cluster[++turn % cluster.length]! : nodes[++turn % nodes.length]!
      Object.assign(client.options, { host: next.host, port: next.port })
      return retryStrategy(attempt)
    }
  })
  return client
}

/** SCAN on every node that owns keys. */
const scan = (
  { client }: RedisLink.Link<Redis | Cluster>,
  pattern: string
): Stream.Stream<ReadonlyArray<string>, Unavailable> =>
  Stream.suspend(() =>
    Stream.fromIterable(client instanceof Cluster ? client.nodes("master") : [client]).pipe(
      Stream.flatMap((node) =>
        Stream.paginate("0", (cursor: string) =>
          Effect.map(
            Effect.tryPromise({
              try: () => node.scan(cursor, "MATCH", pattern, "COUNT", 1_000),
              catch: (error) => RedisLink.unavailable(RedisLink.reasonOf(error), error)
            }),
            ([next, keys]) => [[keys], next === "0" ? Option.none() : Option.some(next)] as const
          )
        )
      )
    )
  )

/**
 * Provides {@link RedisConnection}.
 *
 * @since 0.2.0
 */
export const layer = (options?: RedisOptions): Layer.Layer<RedisConnection, InvalidInput | Unavailable> =>
  Layer.effect(RedisConnection, make(options))

/**
 * Provides {@link RedisConnection} as the environment says; see `RedisOptions.config`.
 *
 * @since 0.2.0
 */
export const layerConfig: Layer.Layer<RedisConnection, Config.ConfigError | InvalidInput | Unavailable> = Layer.effect(
  RedisConnection,
  Effect.flatMap(config, make)
)
