/**
 * Connections to RabbitMQ, through amqplib: one that publishes, declares and asks,
 * and one that consumes, opened when something is first consumed. A broker that
 * holds up publishers so does not hold up acknowledgements.
 *
 * - Nothing hangs: every operation succeeds, or fails with `Unavailable`, within
 *   `timeout`. While RabbitMQ is away, or takes no messages, operations wait for it that
 *   long. What was on its way when the connection went fails at once, unless it may be repeated.
 * - What is published is confirmed, and what it needs is declared before, on every
 *   connection anew.
 * - A channel that RabbitMQ closes is opened again; the others go on.
 *
 * @since 0.2.0
 */
import type { Channel, ConfirmChannel, Options } from "amqplib"
import type * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import type * as Stream from "effect/Stream"
import * as SubscriptionRef from "effect/SubscriptionRef"
import * as Health from "../../services/Health.ts"
import * as Timers from "../../services/internal/Timers.ts"
import { InvalidInput, type Unavailable } from "../../services/Reason.ts"
import { type LinkState, reasonOf } from "../internal/Reconnect.ts"
import * as AmqpLink from "./AmqpLink.ts"
import { type AmqpOptions, config, read } from "./AmqpOptions.ts"
import * as AmqpSession from "./AmqpSession.ts"

export type { LinkState } from "../internal/Reconnect.ts"

/**
 * Where both connections stand.
 *
 * @since 0.2.0
 */
export interface State {
  readonly publishing: LinkState
  readonly consuming: LinkState
}

/**
 * Exchanges, queues and bindings that others rely on. Declaring them twice does no harm.
 *
 * @since 0.2.0
 */
export interface Topology {
  readonly declare: (channel: Channel) => Promise<unknown>
}

/**
 * A message to publish.
 *
 * @since 0.2.0
 */
export interface Outgoing {
  readonly exchange: string
  readonly routingKey: string
  readonly content: Buffer
  readonly properties?: Options.Publish | undefined
  /** Declared before, once per connection. */
  readonly topology?: Topology | undefined
  /** While it gives `true` the message waits, and with it those of the same `order` that come later. */
  readonly isHeld?: (() => boolean) | undefined
  readonly order?: string | undefined
}

/**
 * The connections of one process, shared by the stores on RabbitMQ.
 *
 * @since 0.2.0
 */
export class AmqpConnection extends Context.Service<
  AmqpConnection,
  {
    /** Within which every operation ends, in milliseconds. */
    readonly timeout: number
    /**
     * Publishes; succeeds when RabbitMQ has the message. `false`: it was `mandatory`, and no queue is there for it, not
     * even after its topology was declared again. Messages of one process arrive in order.
     */
    readonly publish: (message: Outgoing) => Effect.Effect<boolean, Unavailable>
    /** Like `publish`, by callback, which is called once, later. Gives what withdraws it, if it has not left. */
    readonly requestPublish: (
      message: Outgoing,
      resume: (result: Exit.Exit<boolean, Unavailable>) => void
    ) => () => void
    /** Sends what waited for something that `isHeld` tells of. */
    readonly dispatchHeld: () => void
    /**
     * Asks RabbitMQ, on a channel that nobody else uses meanwhile; one on which something failed is thrown away.
     * `retry` says that twice is as good as once: it is then repeated when the connection goes meanwhile.
     */
    readonly call: <A>(
      use: (channel: Channel) => Promise<A>,
      options?: { readonly retry?: boolean }
    ) => Effect.Effect<A, Unavailable>
    /** Keeps a channel on the consuming connection, until the scope closes. */
    readonly open: (options: AmqpSession.SessionOptions) => Effect.Effect<AmqpSession.Sessions, never, Scope.Scope>
    readonly state: Effect.Effect<State>
    /** The state now, and every change of it. */
    readonly changes: Stream.Stream<State>
  }
>()("cohort/layers/amqp/AmqpConnection") {}

/** What waits for the publishing connection, or for its answer, no longer than its timeout. */
abstract class Request extends Timers.Timer {
  number = 0
  done = false
  /** Whether it is on its way. */
  sent = false
  /** Whether it can go. */
  abstract mayGo(): boolean
  abstract go(): void
  abstract end(result: Exit.Exit<never, Unavailable>): void
}

/**
 * The cause of an `Unavailable`: the message is larger than RabbitMQ takes, now and later.
 *
 * @since 0.2.0
 */
export class TooLarge extends Error {
  override readonly name = "TooLarge"
  readonly size: number
  readonly largest: number

  constructor(size: number, largest: number) {
    super(`a message of ${size} bytes is larger than the ${largest} that it takes`)
    this.size = size
    this.largest = largest
  }
}

/** What amqplib gives a confirmation that is a nack. */
const isRefusal = (error: unknown): boolean => error instanceof Error && error.message === "message nacked"

/**
 * Connects; unless `lazy`, succeeds only when connected, within the timeout.
 *
 * @since 0.2.0
 */
export const make = (
  options: AmqpOptions = {}
): Effect.Effect<AmqpConnection["Service"], InvalidInput | Unavailable, Scope.Scope> =>
  Effect.gen(function* () {
    const settings = read(options)
    if (settings instanceof InvalidInput) return yield* settings
    const { timeout } = settings
    const timers = yield* Timers.make
    const runFork = Effect.runForkWith(yield* Effect.context<never>())
    const log = (entry: Effect.Effect<void>) => {
      runFork(Effect.annotateLogs(entry, { backend: "rabbitmq" }))
    }

    const states = yield* SubscriptionRef.make<State>({ publishing: "idle", consuming: "idle" })
    const note = (change: Partial<State>) => {
      runFork(SubscriptionRef.update(states, (state) => ({ ...state, ...change })))
    }
    yield* Health.register(
      "rabbitmq",
      Effect.map(SubscriptionRef.get(states), (state) => Health.ofLinks({ ...state }))
    )

    // --- what waits for the publishing connection ---

    const waiting = new Set<Request>()
    let requests = 0

    const submit = (request: Request): void => {
      request.number = ++requests
      timers.start(request, timers.now() + timeout)
      if (publishing.state() === "closed") queueMicrotask(() => request.run())
      else if (mayGo(request)) request.go()
      else wait(request)
    }

    const mayGo = (request: Request): boolean =>
      request.mayGo() &&
      (waiting.size === 0 ||
        !(request instanceof Publication) ||
        ![...waiting].some((other) => other instanceof Publication && other.message.order === request.message.order))

    const wait = (request: Request): void => {
      if (request.done) return
      request.sent = false
      waiting.add(request)
      publishing.connect()
    }

    /** Sends what need not wait any longer, in the order in which it was asked for. */
    const dispatchWaiting = (): void => {
      const held = new Set<string | undefined>()
      for (const request of [...waiting].sort((a, b) => a.number - b.number)) {
        const order = request instanceof Publication ? request.message.order : undefined
        if (!request.mayGo() || (order !== undefined && held.has(order))) {
          held.add(order)
          continue
        }
        waiting.delete(request)
        request.go()
      }
    }

    const withdraw = (request: Request): void => {
      request.done = true
      waiting.delete(request)
      timers.cancel(request)
    }

    const late = (request: Request): Unavailable => {
      const cause = publishing.lastError() ?? channelError
      const blocked = publishing.live()?.blocked
      const why =
        blocked !== undefined
          ? ` (it takes no messages: ${blocked})`
          : cause === undefined || request.sent
            ? ""
            : ` (${reasonOf(cause)})`
      return publishing.state() === "closed"
        ? AmqpLink.unavailable(`the connection is closed${why}`, cause)
        : AmqpLink.unavailable(`no answer within ${timeout} ms${why}`, request.sent ? undefined : cause)
    }

    // --- publishing ---

    /** While it is open. */
    let confirms: Confirms | undefined
    let channelError: unknown
    const returned = new Map<string, Publication>()
    /** What RabbitMQ takes at most. It ends the channel of what is larger, with all that is on its way there, and says so. */
    let largest = Number.POSITIVE_INFINITY
    const noteLargest = (error: unknown) => {
      const [, size] = /larger than configured max size '?(\d+)/.exec(reasonOf(error)) ?? []
      if (size !== undefined) largest = Number(size)
    }

    /** Where messages go. */
    interface Confirms {
      readonly channel: ConfirmChannel
      readonly declared: Map<Topology, Array<Publication> | true>
      /** When it was opened. */
      readonly since: number
      unanswered: number
      /** When it is not used any more, and all of its messages are answered. */
      onAnswered?: () => void
    }

    class Publication extends Request {
      readonly message: Outgoing
      readonly resume: (result: Exit.Exit<boolean, Unavailable>) => void
      isReturned = false
      /** Whether its topology was declared again since a queue was missing. */
      again = false
      private to: Confirms | undefined

      constructor(message: Outgoing, resume: (result: Exit.Exit<boolean, Unavailable>) => void) {
        super()
        this.message = message
        this.resume = resume
      }

      override mayGo() {
        return confirms !== undefined && publishing.live()?.blocked === undefined && this.message.isHeld?.() !== true
      }

      override go() {
        if (this.isTooLarge()) return queueMicrotask(() => this.refuse())
        const { topology } = this.message
        if (topology === undefined) return this.send()
        const declared = confirms!.declared.get(topology)
        if (declared === true) this.send()
        else if (declared === undefined) declare(topology, this)
        else declared.push(this)
      }

      send() {
        if (this.done) return
        if (confirms === undefined) return wait(this)
        const { content, exchange, properties, routingKey } = this.message
        let options = properties
        let key: string | undefined
        if (properties?.mandatory === true) {
          key = String(this.number)
          options = { ...properties, correlationId: key }
          returned.set(key, this)
        }
        this.sent = true
        const to = confirms
        this.to = to
        try {
          to.channel.publish(exchange, routingKey, content, options, (error) => {
            if (key !== undefined) returned.delete(key)
            to.unanswered--
            if (isRefusal(error)) replace(to)
            if (to.unanswered === 0) to.onAnswered?.()
            this.onConfirm(error)
          })
          to.unanswered++
        } catch (error) {
          if (key !== undefined) returned.delete(key)
          if (error instanceof Error && error.name === "IllegalOperationError") wait(this)
          else this.end(Exit.fail(AmqpLink.unavailable(reasonOf(error), error)))
        }
      }

      private isTooLarge() {
        return this.message.content.length > largest
      }

      private refuse() {
        const cause = new TooLarge(this.message.content.length, largest)
        this.end(Exit.fail(AmqpLink.unavailable(cause.message, cause)))
      }

      private onConfirm(error: unknown) {
        if (this.done) return
        if (error !== null) {
          if (this.isTooLarge()) return this.refuse()
          const detail = isRefusal(error)
            ? "it refused a message"
            : "the connection was lost before a message was confirmed"
          return this.end(Exit.fail(AmqpLink.unavailable(detail, channelError ?? publishing.lastError() ?? error)))
        }
        const { topology } = this.message
        if (this.isReturned && !this.again && topology !== undefined && confirms !== undefined) {
          // The queue is gone: whoever removed it did not mean to.
          this.again = true
          this.isReturned = false
          if (confirms.declared.get(topology) === true) confirms.declared.delete(topology)
          return this.go()
        }
        this.end(Exit.succeed(!this.isReturned))
      }

      override end(result: Exit.Exit<boolean, Unavailable>) {
        if (this.done) return
        withdraw(this)
        this.resume(result)
      }

      override run() {
        if (this.sent && this.to !== undefined) replace(this.to)
        this.end(Exit.fail(late(this)))
      }
    }

    const declare = (topology: Topology, first: Publication): void => {
      const { declared } = confirms!
      const queue = [first]
      declared.set(topology, queue)
      ask(
        (channel) => topology.declare(channel),
        true,
        (result) => {
          if (declared !== confirms?.declared) {
            // Another channel by now, where nothing is declared.
            for (const publication of queue) wait(publication)
            return dispatchWaiting()
          }
          if (result._tag === "Success") {
            declared.set(topology, true)
            for (const publication of queue) publication.send()
          } else {
            declared.delete(topology)
            for (const publication of queue) publication.end(Exit.failCause(result.cause))
          }
        }
      )
    }

    const openConfirms = (live: AmqpLink.Live): void => {
      live.model.createConfirmChannel().then(
        (channel) => {
          const opened: Confirms = { channel, declared: new Map(), since: timers.now(), unanswered: 0 }
          channel.on("error", (error) => {
            channelError = error
            noteLargest(error)
          })
          channel.on("return", (message) => {
            const publication = returned.get(message.properties.correlationId as string)
            if (publication !== undefined) publication.isReturned = true
          })
          channel.on("close", () => {
            if (confirms !== opened) return
            confirms = undefined
            // amqplib ends the channels of a connection first, and then the connection.
            queueMicrotask(() => {
              if (live.over) return
              log(Effect.logWarning("The publishing channel ended; opening another", reasonOf(channelError)))
              openConfirms(live)
            })
          })
          confirms = opened
          channelError = undefined
          dispatchWaiting()
        },
        (error) => {
          channelError = error
          // The channel may be refused for a while; the connection's own end is told by itself.
          timers.at(timers.now() + timeout / 10, () => {
            if (!live.over) openConfirms(live)
          })
        }
      )
    }

    /**
     * Opens another channel instead of one that refused a message, or did not answer: a channel can hold on to the leader
     * of a queue that was on a node which is down (seen of RabbitMQ 3.10.8: a quorum queue then refuses for ever, and a
     * stream is silent for ever). It waits a while for the answers that are under way, so that nothing is overtaken. A
     * channel that is new may be refused for a reason.
     */
    const replace = (old: Confirms): void => {
      const live = publishing.live()
      const patience = timeout / 10
      if (live === undefined || old !== confirms || timers.now() - old.since < patience) return
      confirms = undefined
      const end = timers.at(timers.now() + timeout, () => discard(old.channel))
      const open = timers.at(timers.now() + patience, () => {
        if (!live.over) openConfirms(live)
      })
      old.onAnswered = () => {
        timers.start(end, timers.now())
        if (open.pending) timers.start(open, timers.now())
      }
    }

    // --- asking ---

    let idle: Array<Channel> = []

    class Call<A> extends Request {
      readonly use: (channel: Channel) => Promise<A>
      readonly retry: boolean
      readonly resume: (result: Exit.Exit<A, Unavailable>) => void

      constructor(
        use: (channel: Channel) => Promise<A>,
        retry: boolean,
        resume: (result: Exit.Exit<A, Unavailable>) => void
      ) {
        super()
        this.use = use
        this.retry = retry
        this.resume = resume
      }

      override mayGo() {
        return publishing.live() !== undefined
      }

      override go() {
        this.sent = true
        const live = publishing.live()!
        this.attempt(live).then(
          (value) => this.end(Exit.succeed(value)),
          (error) => {
            if (this.done) return
            queueMicrotask(() => {
              if (live.over && this.retry && publishing.state() !== "closed") wait(this)
              else this.end(Exit.fail(AmqpLink.unavailable(reasonOf(error), error)))
            })
          }
        )
      }

      private async attempt(live: AmqpLink.Live): Promise<A> {
        const channel = idle.pop() ?? (await openChannel(live))
        try {
          const value = await this.use(channel)
          // One that was given up meanwhile may still have something under way.
          if (!this.done && !live.over) idle.push(channel)
          else discard(channel)
          return value
        } catch (error) {
          discard(channel)
          throw error
        }
      }

      override end(result: Exit.Exit<A, Unavailable>) {
        if (this.done) return
        withdraw(this)
        this.resume(result)
      }

      override run() {
        this.end(Exit.fail(late(this)))
      }
    }

    const openChannel = async (live: AmqpLink.Live): Promise<Channel> => {
      const channel = await live.model.createChannel()
      channel.on("error", () => undefined)
      channel.on("close", () => {
        idle = idle.filter((other) => other !== channel)
      })
      return channel
    }

    const discard = (channel: Channel): void => {
      try {
        channel.close().catch(() => undefined)
      } catch {
        // Closed by the error.
      }
    }

    const ask = <A>(
      use: (channel: Channel) => Promise<A>,
      retry: boolean,
      resume: (result: Exit.Exit<A, Unavailable>) => void
    ): Request => {
      const call = new Call(use, retry, resume)
      submit(call)
      return call
    }

    const call = <A>(use: (channel: Channel) => Promise<A>, options?: { readonly retry?: boolean }) =>
      Effect.callback<A, Unavailable>((resume) => {
        const call = ask(use, options?.retry ?? false, resume)
        return Effect.sync(() => withdraw(call))
      })

    const requestPublish = (message: Outgoing, resume: (result: Exit.Exit<boolean, Unavailable>) => void) => {
      const publication = new Publication(message, resume)
      submit(publication)
      return () => {
        if (!publication.sent) withdraw(publication)
        else publication.done = true
      }
    }

    // --- the connections ---

    // Neither does anything before it is asked to, so which is made first does not matter.
    let consuming: AmqpLink.Link | undefined
    const sessions = AmqpSession.makeRegistry({
      timers,
      timeout,
      live: () => consuming!.live(),
      connect: () => consuming!.connect(),
      isClosed: () => consuming!.state() === "closed",
      lastError: () => consuming!.lastError(),
      log
    })

    const publishing = yield* AmqpLink.make({
      role: "publishing",
      timers,
      settings,
      isAwaited: () => waiting.size > 0,
      onUp: (live) => {
        // It may have been set anew.
        largest = Number.POSITIVE_INFINITY
        openConfirms(live)
        dispatchWaiting()
      },
      onDown: () => {
        confirms = undefined
        idle = []
      },
      onBlocked: dispatchWaiting,
      onChange: (state) => {
        note({ publishing: state })
        // One is back: so is the other, probably.
        if (state === "ready") consuming?.tryNow()
        else if (state === "closed") for (const request of [...waiting]) request.run()
      }
    })

    consuming = yield* AmqpLink.make({
      role: "consuming",
      timers,
      settings,
      isAwaited: () =>
        sessions.isAwaited() || [...waiting].some((r) => r instanceof Publication && r.message.isHeld?.()),
      onUp: sessions.onUp,
      onDown: () => undefined,
      onBlocked: () => undefined,
      onChange: (state) => {
        note({ consuming: state })
        if (state === "ready") publishing.tryNow()
        else if (state === "closed") {
          sessions.onClosed()
          dispatchWaiting()
        }
      }
    })

    if (settings.lazy) publishing.connect()
    else yield* call(() => Promise.resolve(), { retry: true })

    return AmqpConnection.of({
      timeout,
      publish: (message) =>
        Effect.callback((resume) => {
          const cancel = requestPublish(message, resume)
          return Effect.sync(cancel)
        }),
      requestPublish,
      dispatchHeld: dispatchWaiting,
      call,
      open: sessions.open,
      state: SubscriptionRef.get(states),
      changes: SubscriptionRef.changes(states)
    })
  })

/**
 * Provides {@link AmqpConnection}.
 *
 * @since 0.2.0
 */
export const layer = (options?: AmqpOptions): Layer.Layer<AmqpConnection, InvalidInput | Unavailable> =>
  Layer.effect(AmqpConnection, make(options))

/**
 * Provides {@link AmqpConnection} as the environment says; see `AmqpOptions.config`.
 *
 * @since 0.2.0
 */
export const layerConfig: Layer.Layer<AmqpConnection, Config.ConfigError | InvalidInput | Unavailable> = Layer.effect(
  AmqpConnection,
  Effect.flatMap(config, make)
)
