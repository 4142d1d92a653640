/**
 * Broadcast between the instances of an app.
 *
 * ```ts
 * const Cancel = Topic.make("task.cancel", Schema.Struct({ id: Schema.String }))
 *
 * yield* PubSub.subscribe(Cancel, ({ id }) => stopLocalTask(id))
 * yield* PubSub.publish(Cancel, { id })
 * ```
 *
 * Guarantees:
 *
 * - When `subscribe` returns, a message published anywhere afterwards reaches the
 *   handler. Every subscriber on every instance gets every message; subscribing
 *   twice delivers twice.
 * - At most once. A reconnect, or a subscriber that falls more than `capacity`
 *   messages behind, surfaces a `gap` to whoever asked for it.
 * - Order holds per publisher and channel. Each subscriber handles one message at
 *   a time; a slow one holds up nobody else. (`onlySelf` messages never leave the
 *   instance and are not ordered with those that do.)
 * - A handler that fails is logged and counted, and the next message runs. A message
 *   that does not decode is logged and counted.
 * - Closing the scope of a subscription ends it: what is pending is dropped, a
 *   running handler is interrupted.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Queue from "effect/Queue"
import * as RcMap from "effect/RcMap"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { Instance } from "./Instance.ts"
import * as AfterCommit from "./internal/afterCommit.ts"
import * as Counts from "./internal/counts.ts"
import * as Debounce from "./internal/debounce.ts"
import { getOrMake } from "./internal/getOrMake.ts"
import * as Mailbox from "./internal/Mailbox.ts"
import { pretty } from "./internal/pretty.ts"
import { settled } from "./internal/settled.ts"
import * as Timers from "./internal/Timers.ts"
import * as Trampoline from "./internal/Trampoline.ts"
import { consuming, isTraced, sending } from "./internal/telemetry.ts"
import * as Validate from "./internal/validate.ts"
import * as Metrics from "./Metrics.ts"
import type { Payload } from "./Payload.ts"
import { PubSubTransport } from "./PubSubTransport.ts"
import { InvalidInput, Unavailable } from "./Reason.ts"
import type { Topic } from "./Topic.ts"

/**
 * What can go wrong with a broadcast. `reason` tells which: `InvalidInput` or `Unavailable`.
 *
 * @since 0.1.0
 */
export class PubSubError extends Schema.TaggedError<PubSubError>("cohort/PubSubError")("PubSubError", {
  reason: Schema.Union([InvalidInput, Unavailable])
}) {
  override readonly cause: unknown = this.reason.cause
  override get message(): string {
    return this.reason.message
  }
}

/**
 * Trailing debounce: within `duration`, messages with equal keys collapse to one
 * call with the last of them; messages with different keys all run.
 *
 * @since 0.1.0
 */
export interface DebounceOptions<A> {
  /** The window, started again by every repeat; zero turns debounce off. */
  readonly duration: Duration.Input
  /** What makes messages equal; compared by structure. Default: their whole content. */
  readonly key?: ((message: A) => unknown) | undefined
  /** Longest time from the first of a run of repeats to the call. Default: no limit. */
  readonly maxWait?: Duration.Input | undefined
}

/**
 * Options of {@link subscribe}.
 *
 * @since 0.1.0
 */
export interface SubscribeOptions<A, R = never> {
  /** A window, or more to say. Default: none. */
  readonly debounce?: Duration.Input | DebounceOptions<A> | undefined
  /** Runs, in turn with the handler, when messages may have been missed. */
  readonly onGap?: Effect.Effect<unknown, unknown, R> | undefined
  /** How many messages may wait for a busy handler; the oldest goes first. Default 65,536. */
  readonly capacity?: number | undefined
}

/**
 * Options of {@link publish}. `skipSelf` and `onlySelf` together is an error.
 *
 * @since 0.1.0
 */
export interface PublishOptions {
  /** Do not deliver on this instance. Default `true`. */
  readonly skipSelf?: boolean | undefined
  /** Deliver on this instance only. Default `false`. */
  readonly onlySelf?: boolean | undefined
  /**
   * In an open `effect/sql` transaction, send after the outermost commit, and never after a rollback; what cannot be
   * sent then is logged and counted. Without a transaction at once. Default `false`.
   */
  readonly afterCommit?: boolean | undefined
}

/**
 * Options of {@link stream}.
 *
 * @since 0.1.0
 */
export interface StreamOptions {
  /** How many messages may wait for a slow consumer; the oldest goes first. Default 65,536. */
  readonly capacity?: number | undefined
}

/**
 * Broadcasts by topic. See the module for the guarantees; the module functions of
 * the same names call this service.
 *
 * @since 0.1.0
 */
export class PubSub extends Context.Service<
  PubSub,
  {
    readonly publish: <A, RD, RE>(
      topic: Topic<A, RD, RE>,
      message: A,
      options?: PublishOptions
    ) => Effect.Effect<void, PubSubError, RE>
    readonly subscribe: <A, RD, RE, R = never, R2 = never>(
      topic: Topic<A, RD, RE>,
      handler: (message: A) => Effect.Effect<unknown, unknown, R>,
      options?: SubscribeOptions<A, R2>
    ) => Effect.Effect<void, PubSubError, RD | R | R2 | Scope.Scope>
    readonly stream: <A, RD, RE>(topic: Topic<A, RD, RE>, options?: StreamOptions) => Stream.Stream<A, PubSubError, RD>
  }
>()("cohort/services/PubSub") {}

/**
 * Sends a message to every subscriber of the topic on the other instances; see
 * {@link PublishOptions} for this one. Fails, with nothing sent, when the Schema
 * refuses the message.
 *
 * @since 0.1.0
 */
export const publish = <A, RD, RE>(
  topic: Topic<A, RD, RE>,
  message: A,
  options?: PublishOptions
): Effect.Effect<void, PubSubError, PubSub | RE> => PubSub.use((pubsub) => pubsub.publish(topic, message, options))

/**
 * Runs `handler` for every message of the topic until the scope closes.
 *
 * @since 0.1.0
 */
export const subscribe = <A, RD, RE, R = never, R2 = never>(
  topic: Topic<A, RD, RE>,
  handler: (message: A) => Effect.Effect<unknown, unknown, R>,
  options?: SubscribeOptions<A, R2>
): Effect.Effect<void, PubSubError, PubSub | RD | R | R2 | Scope.Scope> =>
  PubSub.use((pubsub) => pubsub.subscribe(topic, handler, options))

/**
 * The messages of a topic, from the moment the stream runs.
 *
 * @since 0.1.0
 */
export const stream = <A, RD, RE>(
  topic: Topic<A, RD, RE>,
  options?: StreamOptions
): Stream.Stream<A, PubSubError, PubSub | RD> =>
  Stream.unwrap(PubSub.useSync((pubsub) => pubsub.stream(topic, options)))

const defaultCapacity = 65_536

/** What a subscriber gets: a message, or word that some may be missing. */
type Delivery = Payload | typeof gap
const gap = Symbol("gap")

type Subscriber = (delivery: Delivery) => void

/** The subscribers of one channel on this instance. */
class Channel {
  /** Replaced, never changed: a message goes to those who were there when it came. */
  subscribers: ReadonlyArray<Subscriber> = []
  private readonly enqueue: (task: () => void) => void

  constructor(enqueue: (task: () => void) => void) {
    this.enqueue = enqueue
  }

  /** What a handler causes waits until everybody has what it handles: one order for all. */
  deliver(delivery: Delivery): void {
    const { subscribers } = this
    this.enqueue(() => {
      for (const subscriber of subscribers) subscriber(delivery)
    })
  }
}

/**
 * Makes the service on the {@link PubSubTransport} in context.
 *
 * @since 0.1.0
 */
export const make: Effect.Effect<PubSub["Service"], never, PubSubTransport | Instance | Scope.Scope> = Effect.gen(
  function* () {
    const transport = yield* PubSubTransport
    const instance = yield* Instance
    const timers = yield* Timers.make
    const afterCommit = yield* AfterCommit.make(wrapError)
    const log = Effect.runForkWith(yield* Effect.context<never>())
    const local = new Map<string, Channel>()
    const attributes = { "messaging.system": transport.system }
    const countSent = yield* Counts.make(Metrics.sent)
    const countConsumed = yield* Counts.make(Metrics.consumed)
    const sentCounts = new Map<string, Counts.Count>()

    const app = Validate.escape(instance.app)
    const address = (topic: Pick<Topic<unknown>, "channel" | "kind">) =>
      `${app}:${topic.kind}:${Validate.escape(topic.channel)}`

    // One transport subscription per channel, shared by its subscribers.
    const channels = yield* RcMap.make({
      lookup: (channel: string) =>
        Effect.gen(function* () {
          const state = new Channel(yield* Trampoline.make)
          local.set(channel, state)
          yield* Effect.addFinalizer(() => Effect.sync(() => local.get(channel) === state && local.delete(channel)))
          yield* transport.subscribe(
            channel,
            (message) => {
              if (message.toSelf || message.from !== instance.id) state.deliver(message.payload)
            },
            () => {
              log(Metric.update(Metrics.gaps, 1))
              state.deliver(gap)
            }
          )
          return state
        })
    })

    const subscribe = <A, RD, RE, R = never, R2 = never>(
      topic: Topic<A, RD, RE>,
      handler: (message: A) => Effect.Effect<unknown, unknown, R>,
      options?: SubscribeOptions<A, R2>
    ): Effect.Effect<void, PubSubError, RD | R | R2 | Scope.Scope> =>
      // A scope of its own: a subscription that fails leaves nothing behind, and can be tried again.
      Effect.flatMap(Effect.flatMap(Effect.scope, Scope.fork), (scope) =>
        Effect.onError(Scope.provide(subscribeScoped(topic, handler, options), scope), (cause) =>
          Scope.close(scope, Exit.failCause(cause))
        )
      )

    const subscribeScoped = <A, RD, RE, R, R2>(
      topic: Topic<A, RD, RE>,
      handler: (message: A) => Effect.Effect<unknown, unknown, R>,
      options: SubscribeOptions<A, R2> | undefined
    ): Effect.Effect<void, PubSubError, RD | R | R2 | Scope.Scope> =>
      Effect.gen(function* () {
        const debounce = readDebounce(options?.debounce)
        const capacity = Validate.integer("capacity", options?.capacity ?? defaultCapacity, 1)
        const invalid = topic.invalid ?? Validate.invalidOf(debounce) ?? Validate.invalidOf(capacity)
        if (invalid !== undefined) return yield* fail(invalid)

        const context = yield* Effect.context<RD | R | R2>()
        const traced = isTraced(context as Context.Context<never>)
        const handle = ({ message, payload }: { readonly payload: Payload; readonly message: A }) =>
          traced
            ? consuming(
                payload.trace,
                "PubSub.handle",
                { ...attributes, "messaging.operation.name": "handle", "messaging.destination.name": topic.channel },
                Effect.suspend(() => handler(message))
              )
            : handler(message)
        const warn = (text: string, annotations: Record<string, unknown>, ...details: ReadonlyArray<unknown>) =>
          log(
            Effect.logWarning(text, ...details).pipe(
              Effect.annotateLogs({ channel: topic.channel, instance: instance.id, ...annotations })
            )
          )

        const undecodable = (payload: Payload, error: unknown) => {
          warn("Broadcast does not decode; dropped", { payload: excerpt(payload) }, error)
          log(Metric.update(Metrics.messagesUndecodable, 1))
        }

        const gapFailed = (cause: Cause.Cause<unknown>) => {
          warn("Gap handler failed", {}, pretty(cause))
          log(Metric.update(Metrics.handlersFailed, 1))
        }

        const onGap = options?.onGap ?? Effect.void
        // Whether messages were dropped since the last one ran: told before the next.
        let behind = false

        const onDrop = () => {
          if (behind) return
          behind = true
          warn("Subscriber too slow; oldest broadcasts dropped", { capacity })
          log(Metric.update(Metrics.gaps, 1))
        }

        type Task = { readonly payload: Payload; readonly message: A } | typeof gap
        const mailbox = yield* Mailbox.make<Task, R | R2>({
          name: `handler of "${topic.channel}"`,
          context,
          capacity: capacity as number,
          run: (task) => {
            if (task === gap) return onGap
            if (!behind) return handle(task)
            behind = false
            return Effect.andThen(Effect.matchCause(onGap, { onFailure: gapFailed, onSuccess: () => undefined }), () =>
              handle(task)
            )
          },
          onFailure: (task, exit) => {
            if (task === gap) return gapFailed(exit.cause)
            warn("Broadcast handler failed", { payload: excerpt(task.payload) }, pretty(exit.cause))
            log(Metric.update(Metrics.handlersFailed, 1))
          },
          onDrop
        })

        let accept = (payload: Payload, message: A) => mailbox.push({ payload, message })
        if (debounce !== undefined && !(debounce instanceof InvalidInput)) {
          const keyOf = debounce.key
          const offer = yield* Debounce.make<{ readonly payload: Payload; readonly message: A }>(
            timers,
            debounce,
            mailbox.push
          )
          accept = (payload, message) => {
            let key: unknown
            try {
              key = keyOf === undefined ? payload.tree : keyOf(message)
            } catch (error) {
              warn("Debounce key failed; message passed on", { payload: excerpt(payload) }, error)
              return mailbox.push({ payload, message })
            }
            offer(key, { payload, message })
          }
        }

        // Where a message that takes time to decode keeps its place, and the later ones wait.
        const decoder = yield* Mailbox.make<Payload, RD>({
          name: `decoder of "${topic.channel}"`,
          context,
          capacity: capacity as number,
          run: (payload) => Effect.map(topic.wire.decode(payload), (message) => accept(payload, message)),
          onFailure: (payload, exit) => undecodable(payload, Cause.squash(exit.cause)),
          onDrop
        })

        const consumed = countConsumed({ ...attributes, "messaging.destination.name": topic.channel })
        const subscriber = (delivery: Delivery) => {
          if (delivery !== gap) consumed.value++
          if (delivery === gap) return options?.onGap === undefined ? undefined : mailbox.push(gap)
          if (!decoder.idle()) return decoder.push(delivery)
          const known = settled(topic.wire.decode(delivery))
          if (known === undefined) decoder.push(delivery)
          else accept(delivery, known.value)
        }

        const channel = yield* Effect.mapError(RcMap.get(channels, address(topic)), wrapError)
        yield* Effect.acquireRelease(
          Effect.sync(() => {
            channel.subscribers = [...channel.subscribers, subscriber]
          }),
          () =>
            Effect.sync(() => {
              channel.subscribers = channel.subscribers.filter((other) => other !== subscriber)
            })
        )
      })

    const publish = <A, RD, RE>(
      topic: Topic<A, RD, RE>,
      message: A,
      options?: PublishOptions
    ): Effect.Effect<void, PubSubError, RE> =>
      Effect.suspend(() => {
        const invalid = topic.invalid ?? invalidTarget(options)
        if (invalid !== undefined) return fail(invalid)
        const encoded = topic.wire.encode("message", message)
        const known = settled(encoded)
        return known === undefined
          ? Effect.flatMap(Effect.mapError(encoded, wrapError), (payload) => leave(topic, payload, options))
          : leave(topic, known.value, options)
      })

    const leave = (
      topic: Pick<Topic<unknown>, "channel" | "kind">,
      payload: Payload,
      options: PublishOptions | undefined
    ): Effect.Effect<void, PubSubError> => {
      if (options?.afterCommit !== true) return send(topic, payload, options)
      const annotations = { channel: topic.channel, instance: instance.id }
      return afterCommit.send(
        Effect.suspend(() => send(topic, payload, options)),
        undefined,
        annotations
      )
    }

    const send = (
      topic: Pick<Topic<unknown>, "channel" | "kind">,
      payload: Payload,
      options: PublishOptions | undefined
    ): Effect.Effect<void, PubSubError> => {
      const channel = address(topic)
      if (options?.onlySelf === true) {
        local.get(channel)?.deliver(payload)
        return Effect.void
      }
      const sent = sending(
        transport.system,
        "PubSub.publish",
        { "messaging.operation.name": "publish", "messaging.destination.name": topic.channel },
        (trace) =>
          transport.publish(channel, {
            from: instance.id,
            toSelf: options?.skipSelf === false,
            payload: trace === undefined ? payload : payload.withTrace(trace)
          })
      )
      getOrMake(sentCounts, channel, () => countSent({ ...attributes, "messaging.destination.name": topic.channel }))
        .value++
      return settled(sent) ?? Effect.mapError(sent, wrapError)
    }

    return PubSub.of({
      publish,
      subscribe,
      stream: <A, RD, RE>(topic: Topic<A, RD, RE>, options?: StreamOptions) =>
        Stream.callback<A, PubSubError, RD>(
          (queue) =>
            Effect.catchCause(
              subscribe(topic, (message) => Queue.offer(queue, message), options),
              (cause) => Queue.failCause(queue, cause)
            ),
          // A capacity that `subscribe` refuses still needs room for its error.
          { bufferSize: Math.max(options?.capacity || defaultCapacity, 1), strategy: "sliding" }
        )
    })
  }
)

const fail = (reason: InvalidInput | Unavailable) => Effect.fail(new PubSubError({ reason }))
const wrapError = (reason: InvalidInput | Unavailable) => new PubSubError({ reason })
const invalidTarget = (options: PublishOptions | undefined): InvalidInput | undefined =>
  options?.onlySelf === true && options.skipSelf === true
    ? new InvalidInput({ field: "onlySelf", detail: "excludes skipSelf: the message would reach nobody" })
    : undefined

const readDebounce = <A>(
  input: Duration.Input | DebounceOptions<A> | undefined
): (Debounce.DebounceOptions & { readonly key: ((message: A) => unknown) | undefined }) | InvalidInput | undefined => {
  if (input === undefined) return undefined
  const options: DebounceOptions<A> =
    typeof input === "object" && input !== null && "duration" in input
      ? (input as DebounceOptions<A>)
      : { duration: input as Duration.Input }
  const duration = Validate.millis("debounce", options.duration, { zero: true })
  const maxWait = Validate.millis("debounce.maxWait", options.maxWait ?? Number.POSITIVE_INFINITY, { infinity: true })
  if (typeof duration !== "number") return duration
  if (typeof maxWait !== "number") return maxWait
  return duration === 0 ? undefined : { duration, maxWait, key: options.key }
}

/** Enough of a payload to recognise it in a log. */
const excerpt = (payload: Payload): string => payload.dataJson.slice(0, 1_000)

/**
 * Provides {@link PubSub} on the {@link PubSubTransport} in context.
 *
 * @since 0.1.0
 */
export const layer: Layer.Layer<PubSub, never, PubSubTransport | Instance> = Layer.effect(PubSub, make)
