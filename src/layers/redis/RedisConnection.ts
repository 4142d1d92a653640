/**
 * Connections to Redis, through ioredis: one for commands, and one for
 * subscriptions that is opened when something is first subscribed.
 *
 * - Nothing hangs: every operation succeeds, or fails with `Unavailable`, within
 *   `timeout`. While Redis is away operations wait for it that long, and so does
 *   what had not left this process when the connection went, or came to a master
 *   that is none any longer. What had left fails at once, unless it may be repeated.
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
import * as Random from "effect/Random"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as SubscriptionRef from "effect/SubscriptionRef"
import { Cluster, type RedisOptions as IoredisOptions, Redis } from "ioredis"
import * as Health from "../../services/Health.ts"
import * as Timers from "../../services/internal/Timers.ts"
import { InvalidInput, type Unavailable } from "../../services/Reason.ts"
import { type LinkState, reasonOf } from "../internal/Reconnect.ts"
import * as RedisLink from "./RedisLink.ts"
import { clusterOptions, config, type RedisOptions, read, type Settings } from "./RedisOptions.ts"
import { type Answered, hasNotRun, isLost, makeTurns, Request, Sent } from "./RedisRequest.ts"
import type { RedisScript } from "./RedisScript.ts"
import * as RedisSubscriber from "./RedisSubscriber.ts"

export type { LinkState } from "../internal/Reconnect.ts"

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
    /**
     * Publishes; in order per channel. With `toSelf` it waits until this process's own subscription
     * to the channel, if it was lost with its connection, is made again.
     */
    readonly publish: (channel: string, message: string, toSelf: boolean) => Effect.Effect<void, Unavailable>
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
    /** Whether there is a connection: what is sent without one waits. */
    readonly isReady: () => boolean
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
    /**
     * A client that the caller owns, for what blocks a connection; on a Redis Cluster, of one of its nodes. It is not
     * connected yet, does not reconnect, and waits for an answer as long as that takes.
     */
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
    yield* Health.register(
      options.name === undefined ? "redis" : `redis (${options.name})`,
      Effect.map(SubscriptionRef.get(states), (state) => Health.ofLinks({ ...state }))
    )
    const common = { timers, timeout, reconnect: settings.reconnect, name: options.name }

    // --- subscriptions ---

    // Which of them is made first does not matter: neither does anything before it is asked to.
    let subscriptions: RedisLink.Link<Redis> | undefined
    const subscriber = RedisSubscriber.make({
      link: () => subscriptions!,
      timers,
      timeout,
      onFound: () => dispatchWaiting(),
      onRefused: (error) => {
        runFork(
          Effect.annotateLogs(Effect.logWarning("Redis refuses a subscription", reasonOf(error)), {
            backend: "redis",
            role: "subscriptions"
          })
        )
      }
    })

    // --- commands ---

    const waiting = new Set<Request>()
    let requests = 0
    const spread = yield* Random.next

    const { aim: aimCommands, client } = createClient(settings)
    const isCluster = client instanceof Cluster
    const commands: RedisLink.Link<Redis | Cluster> = yield* RedisLink.make<Redis | Cluster>({
      ...common,
      role: "commands",
      client,
      onAttempt: aimCommands,
      flush: () => turns.end(),
      isAwaited: () => waiting.size > 0,
      onChange: (state) => {
        note({ commands: state })
        if (state === "ready") {
          // One is back: so is the other, probably.
          subscriptions?.tryNow()
          dispatchWaiting()
        } else if (state === "closed") {
          for (const request of [...waiting]) end(request, Exit.fail(notConnected(request)))
        }
      }
    })

    const subscribing = createSubscriber(settings, client)
    subscriptions = yield* RedisLink.make<Redis>({
      ...common,
      role: "subscriptions",
      client: subscribing.client,
      onAttempt: subscribing.aim,
      isAwaited: () => subscriber.isAwaited() || [...waiting].some(isHeld),
      onChange: (state) => {
        note({ subscriptions: state })
        if (state === "ready") {
          commands.tryNow()
          subscriber.onReady()
        } else if (state === "closed") {
          subscriber.onClosed()
          dispatchWaiting()
        } else subscriber.onDown()
      }
    })

    // What a node that connects cannot take yet waits here, and not in ioredis, where nothing could withdraw it.
    if (client instanceof Cluster) {
      const open = (node: Redis) => {
        if (client.status !== "ready" || node.status !== "wait" || node.options.readOnly === true) return
        node.connect().catch(() => undefined)
      }
      client.on("+node", (node: Redis) => {
        node.on("ready", dispatchWaiting)
        open(node)
      })
      // First of all: one that has not been asked to connect takes what is sent, and keeps it until it can be run.
      client.prependListener("ready", () => client.nodes("master").forEach(open))
      // Whoever only listens would not learn that its node has left the cluster. ioredis has an interval for it, which may
      // outlive it.
      const look = new Timers.Call(() => {
        if (client.status !== "ready") return
        client.refreshSlotsCache()
        timers.start(look, timers.now() + timeout)
      })
      client.on("ready", () => timers.start(look, timers.now() + timeout))
      // A node that was taken out of the cluster keeps its connections, and passes nothing on any more.
      client.on("refresh", () => {
        if (subscribing.client.status === "ready" && !subscribing.isAtKnownNode()) subscribing.client.disconnect()
      })
    }

    const notConnected = (request: Request) => {
      const cause = request.refusal ?? commands.lastError()
      const why = cause === undefined ? "" : ` (${reasonOf(cause)})`
      return commands.state() === "closed"
        ? RedisLink.unavailable(`the connection is closed${why}`, cause)
        : RedisLink.unavailable(`no answer within ${timeout} ms${why}`, cause)
    }

    const turns = makeTurns(client)

    const end = (request: Request, result: Exit.Exit<any, Unavailable>) => {
      if (request.done) return
      withdraw(request)
      request.resume(result)
    }

    const withdraw = (request: Request) => {
      request.done = true
      waiting.delete(request)
      timers.cancel(request)
    }

    const answered: Answered = {
      onReply: (request, reply) => end(request, Exit.succeed(reply)),
      onError: (request, error, sent) => {
        if (request.done) return
        const isRepeatable = hasNotRun(sent, error) || (request.retry && isLost(error))
        if (isCluster && error.name === "ReplyError") request.refusal = error
        if (isRepeatable && commands.state() !== "closed") wait(request)
        else end(request, Exit.fail(RedisLink.unavailable(error.message, error)))
      }
    }

    /**
     * Ends what waits longer than the timeout behind other answers, as behind large ones over a slow network; silence is
     * noticed by the socket. Noting when each was sent would cost: every tenth of the timeout notes how many there were.
     */
    const counts: Array<number> = []
    const watch = new Timers.Call(() => {
      if (client instanceof Cluster) return
      counts.push(requests)
      const overdue = counts.length > 10 ? counts.shift()! : 0
      const queue = client["commandQueue"]
      for (let i = 0; i < queue.length; i++) {
        const { command } = queue.peekAt(i)!
        if (!(command instanceof Sent)) continue
        if (command.request.number > overdue) break
        expire(command.request)
      }
      if (queue.length > 0) timers.start(watch, timers.now() + timeout / 10)
      else counts.length = 0
    })

    /** Any node of a Redis Cluster takes a publish, but those of one channel arrive in order only through the same one. */
    let publisher: Redis | undefined
    const publisherOf = (cluster: Cluster): Redis | undefined => {
      if (publisher?.status !== "ready") {
        const ready = cluster.nodes("master").filter(({ status }) => status === "ready")
        publisher = ready[Math.floor(spread * ready.length)]
      }
      return publisher
    }

    const dispatch = (request: Request) => {
      // The nodes of a Redis Cluster have a timeout for each command.
      if (!isCluster && !watch.pending) timers.start(watch, timers.now() + timeout / 10)
      const sent = new Sent(request, turns, answered)
      const { reject } = sent
      let { node } = request
      if (client instanceof Cluster && request.channel !== undefined) {
        node = publisherOf(client)
        if (node === undefined) return wait(request)
      }
      try {
        if (node === undefined) client.sendCommand(sent, turns.writer)
        else node.sendCommand(sent)
        if (isCluster) sent.watch(reject)
      } catch (error) {
        // It is too long for a text.
        const failed = Exit.fail(RedisLink.unavailable(String(error), error))
        queueMicrotask(() => end(request, failed))
      }
    }

    /** Whether its own subscription must be made again before. */
    const isHeld = (request: Request) =>
      request.toSelf && request.channel !== undefined && subscriber.isLost(request.channel)

    const wait = (request: Request) => {
      if (commands.state() === "closed") return queueMicrotask(() => expire(request))
      waiting.add(request)
      if (!request.pending) timers.start(request, request.deadline || timers.now() + timeout)
      // A node of a Redis Cluster was away, or another one has its keys now.
      if (isCluster && commands.isReady() && !again.pending) timers.start(again, timers.now() + timeout / 20)
      commands.connect()
      if (isHeld(request)) subscriptions!.connect()
    }

    /** Sends what need not wait any longer, in the order in which it was asked for. */
    const dispatchWaiting = () => {
      if (waiting.size === 0 || !commands.isReady()) return
      const held = new Set<string>()
      for (const request of [...waiting].sort((a, b) => a.number - b.number)) {
        const { channel } = request
        if (channel !== undefined && (held.has(channel) || isHeld(request))) {
          held.add(channel)
          continue
        }
        waiting.delete(request)
        dispatch(request)
      }
    }

    const again = new Timers.Call(dispatchWaiting)

    const submit = (request: Request): Request => {
      request.number = ++requests
      // Reading the clock costs; what is sent once waits from when it turns out not to have left.
      if (request.retry || isCluster) request.deadline = timers.now() + timeout
      const { channel } = request
      const mustWait =
        !commands.isReady() ||
        (channel !== undefined &&
          (isHeld(request) || (waiting.size > 0 && [...waiting].some((other) => other.channel === channel))))
      if (mustWait) wait(request)
      else dispatch(request)
      return request
    }

    const expire = (request: Request) => end(request, Exit.fail(notConnected(request)))

    const request = <A>(
      command: string,
      args: ReadonlyArray<Argument>,
      retry: boolean,
      resume: (result: Exit.Exit<A, Unavailable>) => void
    ): Request => submit(new Request(command, args, retry, expire, resume))

    /** Gives what withdraws it. */
    const requestRun = <A>(
      script: RedisScript,
      keys: ReadonlyArray<string>,
      args: ReadonlyArray<Argument>,
      resume: (result: Exit.Exit<A, Unavailable>) => void
    ): (() => void) => {
      const rest = [keys.length, ...keys, ...args]
      let current = request<A>("evalsha", [script.sha, ...rest], script.retry, (result) => {
        if (result._tag === "Failure" && isUnknownScript(result)) {
          current = request("eval", [script.lua, ...rest], script.retry, resume)
        } else {
          resume(result)
        }
      })
      return () => withdraw(current)
    }

    /** Submits a request; what still waits for the connection when it is interrupted is never sent. */
    const ask = <A>(make: (resume: (result: Exit.Exit<A, Unavailable>) => void) => Request) =>
      Effect.callback<A, Unavailable>((resume) => {
        const request = submit(make(resume))
        return Effect.sync(() => withdraw(request))
      })

    const ping = ask((resume) => new Request("ping", [], true, expire, resume))

    /** SCAN on every node that owns keys. */
    const scan = (pattern: string): Stream.Stream<ReadonlyArray<string>, Unavailable> =>
      Effect.map(isCluster && !commands.isReady() ? ping : Effect.void, () =>
        Stream.fromIterable(client instanceof Cluster ? client.nodes("master") : [undefined]).pipe(
          Stream.flatMap((node) =>
            Stream.paginate("0", (cursor: string) =>
              Effect.map(
                ask<[string, ReadonlyArray<string>]>((resume) => {
                  const args = [cursor, "MATCH", pattern, "COUNT", 1_000]
                  const request = new Request("scan", args, true, expire, resume)
                  request.node = node
                  return request
                }),
                ([next, keys]) => [[keys], next === "0" ? Option.none() : Option.some(next)] as const
              )
            )
          )
        )
      ).pipe(Stream.unwrap)

    if (!settings.lazy) yield* ping

    return RedisConnection.of({
      isCluster,
      timeout,
      send: (command, args, options) =>
        ask((resume) => new Request(command, args, options?.retry ?? false, expire, resume)),
      publish: (channel, message, toSelf) =>
        ask((resume) => {
          const request = new Request("publish", [channel, message], false, expire, resume)
          request.channel = channel
          request.toSelf = toSelf
          return request
        }),
      run: (script, keys, args) => Effect.callback((resume) => Effect.sync(requestRun(script, keys, args, resume))),
      request,
      requestRun,
      isReady: commands.isReady,
      flush: () => {
        if (client instanceof Cluster || !commands.isReady()) return false
        turns.end()
        return client.stream.writableLength === 0 && client.stream.errored === null
      },
      subscribe: subscriber.subscribe,
      scan,
      state: SubscriptionRef.get(states),
      changes: SubscriptionRef.changes(states),
      dedicated: () => {
        const { socketTimeout: _, ...options } = settings.client
        const dedicated = createSubscriber({ ...settings, client: options }, client)
        dedicated.aim()
        return dedicated.client
      }
    })
  })

const isUnknownScript = (exit: Exit.Failure<unknown, Unavailable>): boolean =>
  exit.cause.reasons.some(
    (reason) =>
      reason._tag === "Fail" && reason.error.cause instanceof Error && reason.error.cause.message.startsWith("NOSCRIPT")
  )

/** A client, and what is to be called before it connects. */
interface Aimed<C> {
  readonly client: C
  readonly aim: () => void
}

const createClient = (settings: Settings): Aimed<Redis | Cluster> => {
  if (settings.cluster === undefined) return { client: open(settings.client), aim: () => undefined }
  const given = settings.cluster
  let known = given
  const seeds = [...given]
  const client = new Cluster(seeds, clusterOptions(settings))
  client.on("refresh", () => {
    const nodes = client.nodes("all").map(addressOf)
    if (nodes.length > 0) known = nodes
  })
  let attempts = 0
  // Those that were given and those that were known last, in turn: the former may have left the cluster since, and the
  // latter may all have other addresses.
  return { client, aim: () => void seeds.splice(0, seeds.length, ...(attempts++ % 2 === 0 ? given : known)) }
}

const open = (options: IoredisOptions): Redis => new Redis({ ...options, replyMapping: "legacy" })

const addressOf = ({ options }: Redis) => ({ host: options.host!, port: options.port! })

/** A client of its own; on a Redis Cluster, of one of the nodes that are known, and of the next one with every attempt. */
const createSubscriber = (
  { client, cluster }: Settings,
  commands: Redis | Cluster
): Aimed<Redis> & { readonly isAtKnownNode: () => boolean } => {
  if (cluster === undefined) return { client: open(client), aim: () => undefined, isAtKnownNode: () => true }
  const nodes = () => {
    const known = commands instanceof Cluster ? commands.nodes("all").map(addressOf) : []
    return known.length > 0 ? known : cluster
  }
  let turn = 0
  const created = open({ ...client, ...cluster[0]! })
  return {
    client: created,
    aim: () => {
      Object.assign(created.options, nodes()[turn++ % nodes().length]!)
    },
    isAtKnownNode: () => {
      const hosts = [created.options.host, created.stream.remoteAddress]
      return nodes().some(({ host, port }) => port === created.options.port && hosts.includes(host))
    }
  }
}

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
