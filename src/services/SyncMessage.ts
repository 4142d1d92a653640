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
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { Instance } from "./Instance.ts"
import * as AfterCommit from "./internal/afterCommit.ts"
import * as Debounce from "./internal/debounce.ts"
import { getOrMake } from "./internal/getOrMake.ts"
import * as Mailbox from "./internal/Mailbox.ts"
import { settled } from "./internal/settled.ts"
import * as Timers from "./internal/Timers.ts"
import { consuming, currentTrace, isTraced } from "./internal/telemetry.ts"
import * as Validate from "./internal/validate.ts"
import * as Metrics from "./Metrics.ts"
import { Payload, type Wire, wire } from "./Payload.ts"
import * as PubSub from "./PubSub.ts"
import { InvalidInput, Unavailable } from "./Reason.ts"
import * as Topic from "./Topic.ts"

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
 * Options of {@link layerWith}.
 *
 * @since 0.1.0
 */
export interface Options {
  /** How often an instance announces its last numbers; positive. Default 10 seconds. */
  readonly announceInterval?: Duration.Input | undefined
}

/** One message on a sync channel: its sender's number for it, and the message. */
const Envelope = Schema.Struct({ from: Schema.String, number: Schema.Int, data: Schema.Json })

/** The last number that an instance has sent on each of its channels. */
const Announcement = Schema.Struct({ from: Schema.String, last: Schema.Record(Schema.String, Schema.Int) })

const Announcements = Topic.make("sync", Announcement, "announcements")

const resyncBackoff = Schedule.min([Schedule.exponential("200 millis"), Schedule.spaced("30 seconds")]).pipe(
  Schedule.jittered
)

/** A sender that has been silent for this many announcements is forgotten. */
const forgetAfter = 30

/** What one receiver knows of the senders, and what it does when something is missing. */
class Numbers {
  private readonly last = new Map<string, { number: number; heardAt: number }>()
  private readonly resync: () => void

  constructor(resync: () => void) {
    this.resync = resync
  }

  /** Notes a message; `false` when it came before. */
  message(from: string, number: number, now: number): boolean {
    const known = this.last.get(from)
    if (known !== undefined && number <= known.number) return false
    this.last.set(from, { number, heardAt: now })
    if (known === undefined || number > known.number + 1) this.resync()
    return true
  }

  announcement(from: string, number: number | undefined, now: number): void {
    const known = this.last.get(from)
    if (known !== undefined) known.heardAt = now
    if (number === undefined || (known !== undefined && number <= known.number)) return
    this.last.set(from, { number, heardAt: now })
    this.resync()
  }

  forget(before: number): void {
    for (const [from, { heardAt }] of this.last) if (heardAt < before) this.last.delete(from)
  }
}

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
    const { id: self } = yield* Instance
    const timers = yield* Timers.make
    const { now } = timers
    const afterCommit = yield* AfterCommit.make(invalidMessage)
    const log = Effect.runForkWith(yield* Effect.context<never>())
    const interval = Validate.millis("announceInterval", options.announceInterval ?? "10 seconds")
    if (typeof interval !== "number") return yield* fail(interval)

    /** The last number sent, by channel. */
    const sent: Record<string, number> = Object.create(null)
    const receivers = new Set<{ readonly channel: string; readonly numbers: Numbers }>()
    const topics = new Map<string, Topic.Topic<typeof Envelope.Type>>()

    const topicOf = (channel: string) => getOrMake(topics, channel, () => Topic.make(channel, Envelope, "sync"))

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
      return Object.keys(sent).length === 0
        ? Effect.void
        : pubsub.publish(Announcements, { from: self, last: { ...sent } })
    }).pipe(
      Effect.catch((error) => Effect.logWarning("Sync announcement not sent", error)),
      Effect.delay(interval),
      Effect.forever,
      Effect.forkScoped
    )

    return SyncMessage.of({
      publish: (channel, message) =>
        Effect.suspend(() => {
          const invalid = Validate.name("channel", channel.channel)
          if (invalid !== undefined) return fail(invalid)
          return Effect.flatMap(Effect.mapError(channel.wire.encode("message", message), invalidMessage), (payload) => {
            // Numbered when it leaves: a rollback leaves no hole, and numbers are in the order of sending.
            const send = Effect.suspend(() => {
              const number = (sent[channel.channel] ?? 0) + 1
              sent[channel.channel] = number
              const data = payload.tree as Schema.Json
              return Effect.mapError(pubsub.publish(topicOf(channel.channel), { from: self, number, data }), wrapError)
            })
            return afterCommit.send(send, undefined, { channel: channel.channel, instance: self })
          })
        }),

      subscribe: <A, RD, RE, R, R2>(channel: SyncChannel<A, RD, RE>, receiver: Receiver<A, R, R2>) =>
        Effect.gen(function* () {
          const debounce = Validate.millis("debounce", channel.debounce, { zero: true })
          const invalid = Validate.name("channel", channel.channel)
          if (invalid !== undefined) return yield* fail(invalid)
          if (typeof debounce !== "number") return yield* fail(debounce)

          const context = yield* Effect.context<RD | R | R2>()
          const annotations = { channel: channel.channel, instance: self }
          const warn = (text: string, ...details: ReadonlyArray<unknown>) =>
            log(Effect.annotateLogs(Effect.logWarning(text, ...details), annotations))

          interface Change {
            readonly message: A
            readonly trace: string | undefined
          }
          type Task = typeof resync | Change
          const resync = Symbol("resync")
          // Set from the moment a resync is wanted until one starts: later gaps need no other.
          let wanted = false
          // Whether messages were dropped because the handler fell behind.
          let behind = false
          const want = () => {
            if (wanted) return
            wanted = true
            mailbox.push(resync)
          }

          const runResync = Effect.suspend(() => {
            wanted = false
            return receiver.resync
          }).pipe(
            Effect.andThen(Metric.update(Metrics.resyncs, 1)),
            Effect.tapCause((cause) => {
              log(Metric.update(Metrics.resyncsFailed, 1))
              return Effect.sync(() => warn("Resync failed; it is tried again", Cause.pretty(cause)))
            }),
            // A defect is retried as well: state that stays stale is worse than a loud log.
            Effect.sandbox,
            Effect.retry(resyncBackoff)
          )

          const traced = isTraced(context as Context.Context<never>)
          const handle = ({ message, trace }: Change) =>
            traced
              ? consuming(
                  trace,
                  "SyncMessage.handle",
                  { "messaging.operation.name": "handle", "messaging.destination.name": channel.channel },
                  Effect.suspend(() => receiver.handle(message))
                )
              : receiver.handle(message)

          const mailbox = yield* Mailbox.make<Task, RD | R | R2>({
            name: `sync handler of "${channel.channel}"`,
            context,
            capacity: 65_536,
            run: (task) => {
              if (task !== resync) {
                if (!behind) return handle(task)
                behind = false
                return Effect.andThen(runResync, () => handle(task))
              }
              // One that began after this one was wanted has done its work.
              if (!wanted && !behind) return Effect.void
              behind = false
              return runResync
            },
            onFailure: (task, exit) => {
              if (task === resync) return
              warn("Sync handler failed; resyncing", Cause.pretty(exit.cause))
              log(Metric.update(Metrics.handlersFailed, 1))
              want()
            },
            onDrop: () => {
              behind = true
            }
          })

          const offer =
            debounce === 0
              ? (_: unknown, change: Change) => mailbox.push(change)
              : yield* Debounce.make<Change>(timers, { duration: debounce, maxWait: debounce * 10 }, mailbox.push)

          const numbers = new Numbers(want)
          const entry = { channel: channel.channel, numbers }
          yield* Effect.acquireRelease(
            Effect.sync(() => receivers.add(entry)),
            () => Effect.sync(() => receivers.delete(entry))
          )

          yield* Effect.mapError(
            pubsub.subscribe(
              topicOf(channel.channel),
              ({ data, from, number }) =>
                Effect.suspend(() => {
                  if (!numbers.message(from, number, now())) return Effect.void
                  const decoded = channel.wire.decode(Payload.fromTree(data))
                  const known = settled(decoded)
                  const trace = currentTrace()
                  if (known !== undefined) return Effect.sync(() => offer(data, { message: known.value, trace }))
                  return Effect.matchCauseEffect(decoded, {
                    onSuccess: (message) => Effect.sync(() => offer(data, { message, trace })),
                    onFailure: (cause) => {
                      warn("Sync message does not decode; resyncing", Cause.squash(cause))
                      want()
                      return Metric.update(Metrics.messagesUndecodable, 1)
                    }
                  })
                }),
              { onGap: Effect.sync(want) }
            ),
            wrapError
          )
        })
    })
  })

const fail = (reason: InvalidInput | Unavailable) => Effect.fail(new SyncMessageError({ reason }))
const invalidMessage = (reason: InvalidInput) => new SyncMessageError({ reason })
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
