/**
 * Signals that keep in-memory state equal on every instance.
 *
 * ```ts
 * const SchemaChanged = SyncMessage.make("data-source-main", SchemaChange)
 *
 * yield* SyncMessage.subscribe(SchemaChanged, { handle: apply, resync: reloadFromStore })
 * yield* SyncMessage.publish(SchemaChanged, { type: "removeField", collection, field })
 * ```
 *
 * A signal says that the stored state has changed; `handle` brings the state in
 * memory up to date. Broadcast alone would lose signals, so senders number theirs
 * and receivers notice what is missing:
 *
 * - **After the commit.** Published inside an open `effect/sql` transaction, a message leaves after the outermost
 *   commit, in order, and never after a rollback, of the transaction or of its savepoint. What cannot be sent then is
 *   logged and counted, and leaves a hole that receivers notice. Without a transaction it leaves at once.
 * - **Never to the sender.** The publishing instance has changed its own state already.
 * - **Gap → resync.** A receiver that sees a hole in a sender's numbers, a reconnect,
 *   or a sender it had not heard of, runs `resync`, which reloads everything from the
 *   store. Many gaps at once cause one resync; a failing one is retried with backoff.
 * - **Bounded.** Each instance announces its last numbers every `announceInterval`
 *   (default 10 seconds; one announcement for all its channels, none if it never sent),
 *   so a lost last message is noticed within that bound.
 * - **Debounced.** Equal messages within a second collapse to one call (`debounce`, zero
 *   turns it off); a steady stream of repeats still comes through every ten windows.
 * - `handle` and `resync` of one subscription never run at the same time.
 *
 * Built on {@link PubSub}: it works on every backend that broadcasts.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import type * as DateTime from "effect/DateTime"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Health from "./Health.ts"
import { Instance } from "./Instance.ts"
import * as AfterCommit from "./internal/afterCommit.ts"
import { getOrMake } from "./internal/getOrMake.ts"
import * as SyncReceiver from "./internal/SyncReceiver.ts"
import * as Timers from "./internal/Timers.ts"
import { currentTrace } from "./internal/telemetry.ts"
import * as Validate from "./internal/validate.ts"
import { Payload, type Wire, wire } from "./Payload.ts"
import * as PubSub from "./PubSub.ts"
import { InvalidInput, Unavailable } from "./Reason.ts"
import { SyncOutbox } from "./SyncOutbox.ts"
import * as Topic from "./Topic.ts"
import * as Uuid from "./Uuid.ts"

/**
 * What can go wrong with a sync message. `reason` tells which: `InvalidInput` or `Unavailable`.
 *
 * @since 0.1.0
 */
export class SyncMessageError extends Schema.TaggedError<SyncMessageError>("cohort/SyncMessageError")(
  "SyncMessageError",
  { reason: Schema.Union([InvalidInput, Unavailable]) }
) {
  override readonly cause: unknown = this.reason.cause
  override get message(): string {
    return this.reason.message
  }
}

/**
 * A sync channel and what travels on it; one per plugin.
 *
 * @since 0.1.0
 */
export interface SyncChannel<A, RD = never, RE = never> {
  readonly channel: string
  readonly wire: Wire<A, RD, RE>
  readonly debounce: Duration.Input
}

/**
 * Declares a sync channel, usually named like its plugin. `debounce` defaults to 1 second; zero turns it off.
 *
 * @since 0.1.0
 */
export const make = <S extends Schema.Constraint>(
  channel: string,
  schema: S,
  options?: { readonly debounce?: Duration.Input | undefined }
): SyncChannel<S["Type"], S["DecodingServices"], S["EncodingServices"]> => ({
  channel,
  wire: wire(schema),
  debounce: options?.debounce ?? "1 second"
})

/**
 * What a receiver does.
 *
 * @since 0.1.0
 */
export interface Receiver<A, R, R2> {
  /** Brings the state in memory up to date with one change. A failure is logged, counted, and causes a resync. */
  readonly handle: (message: A) => Effect.Effect<unknown, unknown, R>
  /** Reloads the whole state from the store. Retried with backoff until it succeeds. */
  readonly resync: Effect.Effect<unknown, unknown, R2>
}

/**
 * A resync that is wanted, runs, or is tried again.
 *
 * @since 0.2.0
 */
export interface ResyncStatus {
  /** When it was first wanted. */
  readonly since: DateTime.Utc
  /** How often it has failed since; zero while it waits for its turn or runs for the first time. */
  readonly failures: number
  /** Why it failed last, if it did. */
  readonly lastError: string | undefined
}

/**
 * What one subscription knows.
 *
 * @since 0.2.0
 */
export interface ReceiverStatus {
  readonly channel: string
  /** The last number heard, by instance. */
  readonly last: Readonly<Record<string, number>>
  /** `undefined`: nothing is missing. */
  readonly resync: ResyncStatus | undefined
}

/**
 * How this instance's sync channels do, for a page of health.
 *
 * @since 0.2.0
 */
export interface Status {
  /** The last number that this instance has sent, by channel. */
  readonly sent: Readonly<Record<string, number>>
  /** Its subscriptions. */
  readonly receivers: ReadonlyArray<ReceiverStatus>
}

/**
 * Sync messages by channel. See the module for the guarantees; the module
 * functions of the same names call this service.
 *
 * @since 0.1.0
 */
export class SyncMessage extends Context.Service<
  SyncMessage,
  {
    readonly publish: <A, RD, RE>(
      channel: SyncChannel<A, RD, RE>,
      message: A
    ) => Effect.Effect<void, SyncMessageError, RE>
    readonly subscribe: <A, RD, RE, R, R2>(
      channel: SyncChannel<A, RD, RE>,
      receiver: Receiver<A, R, R2>
    ) => Effect.Effect<void, SyncMessageError, RD | R | R2 | Scope.Scope>
    readonly status: Effect.Effect<Status>
  }
>()("cohort/services/SyncMessage") {}

/**
 * Tells the other instances; in an open `effect/sql` transaction, after its commit. Fails, with nothing sent, when the
 * Schema refuses the message, or when it is called in a transaction that has ended. A message whose sending failed
 * leaves a hole that the receivers notice.
 *
 * @since 0.1.0
 */
export const publish = <A, RD, RE>(
  channel: SyncChannel<A, RD, RE>,
  message: A
): Effect.Effect<void, SyncMessageError, SyncMessage | RE> => SyncMessage.use((sync) => sync.publish(channel, message))

/**
 * Handles the messages of the other instances until the scope closes. Subscribe
 * before loading the state, so that no change falls between the two.
 *
 * @since 0.1.0
 */
export const subscribe = <A, RD, RE, R, R2>(
  channel: SyncChannel<A, RD, RE>,
  receiver: Receiver<A, R, R2>
): Effect.Effect<void, SyncMessageError, SyncMessage | RD | R | R2 | Scope.Scope> =>
  SyncMessage.use((sync) => sync.subscribe(channel, receiver))

/**
 * How this instance's sync channels do: what was sent, what was heard, and which resyncs are pending or failing.
 *
 * @since 0.2.0
 */
export const status: Effect.Effect<Status, never, SyncMessage> = SyncMessage.use((sync) => sync.status)

/**
 * Options of {@link layerWith}.
 *
 * @since 0.1.0
 */
export interface Options {
  /** How often an instance announces its last numbers; positive. Default 10 seconds. */
  readonly announceInterval?: Duration.Input | undefined
}

/** The last number that an instance has sent on each of its channels. */
const Announcement = Schema.Struct({ from: Schema.String, last: Schema.Record(Schema.String, Schema.Int) })

const Announcements = Topic.make("sync", Announcement, "announcements")

/** A sender that has been silent for this many announcements is forgotten. */
const forgetAfter = 30

/**
 * Makes the service on {@link PubSub}.
 *
 * @since 0.1.0
 */
export const makeService = (
  options: Options = {}
): Effect.Effect<SyncMessage["Service"], SyncMessageError, PubSub.PubSub | Instance | Scope.Scope> =>
  Effect.gen(function* () {
    const pubsub = yield* PubSub.PubSub
    const { app, id: self } = yield* Instance
    const uuid = yield* Uuid.Generator
    const clock = yield* Clock.clockWith(Effect.succeed)
    const timers = yield* Timers.make
    const { now } = timers
    const afterCommit = yield* AfterCommit.make(failure)
    const log = Effect.runForkWith(yield* Effect.context<never>())
    const interval = Validate.millis("announceInterval", options.announceInterval ?? "10 seconds")
    if (typeof interval !== "number") return yield* fail(interval)

    /** The last number sent, by channel. */
    const sent: Record<string, number> = Object.create(null)
    const receivers = new Set<SyncReceiver.SyncReceiver>()
    const topics = new Map<string, Topic.Topic<typeof SyncReceiver.Envelope.Type>>()

    const topicOf = (channel: string) =>
      getOrMake(topics, channel, () => Topic.make(channel, SyncReceiver.Envelope, "sync"))
    const announce = Effect.suspend(() => pubsub.publish(Announcements, { from: self, last: { ...sent } }))

    yield* Effect.mapError(
      pubsub.subscribe(Announcements, ({ from, last }) =>
        Effect.sync(() => {
          for (const { channel, numbers } of receivers) {
            numbers.announcement(from, Object.hasOwn(last, channel) ? last[channel] : undefined, now())
          }
        })
      ),
      wrapError
    )

    yield* Effect.suspend(() => {
      for (const { numbers } of receivers) numbers.forget(now() - forgetAfter * interval)
      return Object.keys(sent).length === 0 ? Effect.void : announce
    }).pipe(
      Effect.catch((error) => Effect.logWarning("Sync announcement not sent", error.message)),
      Effect.delay(interval),
      Effect.forever,
      Effect.forkScoped
    )

    /** Sends with the next number; one whose sending fails leaves a hole. */
    const send = (
      channel: string,
      content: { readonly data: Schema.Json } | Pick<SyncReceiver.Relayed, "relayed">,
      options?: PubSub.PublishOptions
    ) =>
      Effect.suspend(() => {
        const number = (sent[channel] ?? 0) + 1
        sent[channel] = number
        return pubsub.publish(topicOf(channel), { from: self, number, ...content }, options)
      })

    /** Hands what was relayed to the receivers of this instance: it may come from another. */
    const deliver = (channel: string, relayed: SyncReceiver.Relayed["relayed"]) =>
      pubsub.publish(topicOf(channel), { from: self, number: 0, relayed }, { onlySelf: true })

    const outbox = yield* Effect.flatMap(
      Effect.serviceOption(SyncOutbox),
      Option.match({
        onNone: () => Effect.succeed(undefined),
        onSome: (outbox) =>
          outbox.open({
            app,
            kind: "sync",
            instance: self,
            // All in one broadcast: either it went, or what comes next must wait for it.
            send: (channel, rows) =>
              Effect.gen(function* () {
                const relayed = yield* Effect.try({
                  try: () =>
                    rows.map(({ message, origin, payload }) => {
                      const { trace, tree } = Payload.fromJson(payload)
                      const data = tree as Schema.Json
                      return { id: message, origin, data, ...(trace === undefined ? {} : { trace }) }
                    }),
                  catch: (error) => new InvalidInput({ field: "payload", detail: String(error) })
                })
                yield* send(channel, { relayed })
                yield* deliver(channel, relayed)
                return undefined
              }).pipe(
                Effect.catch((error) => Effect.succeed("reason" in error ? error.reason : error)),
                Effect.map((result) => rows.map(() => result))
              ),
            probe: () => Effect.isSuccess(announce),
            // A number that never comes: receivers resync.
            onAside: (channel) =>
              Effect.sync(() => {
                sent[channel] = (sent[channel] ?? 0) + 1
                for (const receiver of receivers) if (receiver.channel === channel) receiver.want()
              })
          })
      })
    )

    yield* Health.register(
      "sync",
      Effect.sync(() => {
        const failing = Array.from(receivers, (entry) => entry.status()).filter(
          ({ resync }) => (resync?.failures ?? 0) > 0
        )
        return failing.length === 0
          ? Health.up
          : Health.degraded(
              failing.map(({ channel, resync }) => `the resync of "${channel}" fails: ${resync?.lastError}`).join("; ")
            )
      })
    )

    return SyncMessage.of({
      publish: (channel, message) =>
        Effect.suspend(() => {
          const invalid = Validate.name("channel", channel.channel)
          if (invalid !== undefined) return fail(invalid)
          return Effect.flatMap(Effect.mapError(channel.wire.encode("message", message), failure), (payload) => {
            if (outbox !== undefined) {
              const trace = currentTrace()
              const { json } = trace === undefined ? payload : payload.withTrace(trace)
              return Effect.mapError(
                outbox.write({ channel: channel.channel, message: uuid(), payload: json }),
                failure
              )
            }
            // Numbered when it leaves: a rollback leaves no hole, and numbers are in the order of sending.
            return afterCommit.send(
              Effect.mapError(send(channel.channel, { data: payload.tree as Schema.Json }), wrapError),
              undefined,
              { channel: channel.channel, instance: self }
            )
          })
        }),

      subscribe: <A, RD, RE, R, R2>(channel: SyncChannel<A, RD, RE>, receiver: Receiver<A, R, R2>) =>
        Effect.gen(function* () {
          const debounce = Validate.millis("debounce", channel.debounce, { zero: true })
          const invalid = Validate.name("channel", channel.channel)
          if (invalid !== undefined) return yield* fail(invalid)
          if (typeof debounce !== "number") return yield* fail(debounce)

          const entry = yield* SyncReceiver.make({
            self,
            channel: channel.channel,
            wire: channel.wire,
            debounce,
            receiver,
            context: yield* Effect.context<RD | R | R2>(),
            timers,
            time: () => clock.currentTimeMillisUnsafe(),
            log
          })
          yield* Effect.acquireRelease(
            Effect.sync(() => receivers.add(entry)),
            () => Effect.sync(() => receivers.delete(entry))
          )
          yield* Effect.mapError(
            pubsub.subscribe(topicOf(channel.channel), entry.onEnvelope, { onGap: Effect.sync(entry.want) }),
            wrapError
          )
        }),

      status: Effect.sync(() => ({ sent: { ...sent }, receivers: Array.from(receivers, (entry) => entry.status()) }))
    })
  })

const fail = (reason: InvalidInput | Unavailable) => Effect.fail(new SyncMessageError({ reason }))
const failure = (reason: InvalidInput | Unavailable) => new SyncMessageError({ reason })
const wrapError = (error: PubSub.PubSubError) => new SyncMessageError({ reason: error.reason })

/**
 * Provides {@link SyncMessage} on {@link PubSub}.
 *
 * @since 0.1.0
 */
export const layerWith = (options: Options): Layer.Layer<SyncMessage, SyncMessageError, PubSub.PubSub | Instance> =>
  Layer.effect(SyncMessage, makeService(options))

/**
 * Provides {@link SyncMessage} with the default options.
 *
 * @since 0.1.0
 */
export const layer: Layer.Layer<SyncMessage, SyncMessageError, PubSub.PubSub | Instance> = layerWith({})
