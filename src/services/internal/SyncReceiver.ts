/**
 * One subscription to a sync channel: what it knows of the senders, and what it does when something is missing.
 *
 * A thousand gaps at once cause one resync: one that is wanted and has not started does for all. What comes while it
 * runs causes one more.
 */
import * as Cause from "effect/Cause"
import type * as Context from "effect/Context"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Metrics from "../Metrics.ts"
import { Payload, type Wire } from "../Payload.ts"
import type { Receiver, ReceiverStatus } from "../SyncMessage.ts"
import * as Debounce from "./debounce.ts"
import { ExpiringMap } from "./ExpiringMap.ts"
import * as Mailbox from "./Mailbox.ts"
import { repeatWindow } from "./outbox/repeats.ts"
import { pretty } from "./pretty.ts"
import { settled } from "./settled.ts"
import { consuming, currentTrace, isTraced } from "./telemetry.ts"
import type * as Timers from "./Timers.ts"

/** A message, with its sender's number for it. */
const Direct = Schema.Struct({ from: Schema.String, number: Schema.Int, data: Schema.Json })

/** Messages out of the outbox: `origin` published them, `from` relays them and numbers them together. */
const Relayed = Schema.Struct({
  from: Schema.String,
  number: Schema.Int,
  relayed: Schema.Array(
    Schema.Struct({
      id: Schema.String,
      origin: Schema.String,
      data: Schema.Json,
      trace: Schema.optionalKey(Schema.String)
    })
  )
})

export type Relayed = typeof Relayed.Type

/** What travels on a sync channel. */
export const Envelope = Schema.Union([Direct, Relayed])

const resyncBackoff = Schedule.min([Schedule.exponential("200 millis"), Schedule.spaced("30 seconds")]).pipe(
  Schedule.jittered
)

/** What one receiver knows of the senders. */
class Numbers {
  readonly last = new Map<string, { number: number; heardAt: number }>()
  private readonly missing: () => void

  constructor(missing: () => void) {
    this.missing = missing
  }

  /** Notes a message; `false` when it came before. */
  message(from: string, number: number, now: number): boolean {
    const known = this.last.get(from)
    if (known !== undefined && number <= known.number) return false
    this.last.set(from, { number, heardAt: now })
    if (known === undefined || number > known.number + 1) this.missing()
    return true
  }

  announcement(from: string, number: number | undefined, now: number): void {
    const known = this.last.get(from)
    if (known !== undefined) known.heardAt = now
    if (number === undefined || (known !== undefined && number <= known.number)) return
    this.last.set(from, { number, heardAt: now })
    this.missing()
  }

  forget(before: number): void {
    for (const [from, { heardAt }] of this.last) if (heardAt < before) this.last.delete(from)
  }
}

export interface SyncReceiver {
  readonly channel: string
  readonly numbers: Numbers
  readonly onEnvelope: (envelope: typeof Envelope.Type) => Effect.Effect<void>
  /** Resyncs soon. */
  readonly want: () => void
  readonly status: () => ReceiverStatus
}

export const make = <A, RD, RE, R, R2>(options: {
  readonly self: string
  readonly channel: string
  readonly wire: Wire<A, RD, RE>
  /** Milliseconds. */
  readonly debounce: number
  readonly receiver: Receiver<A, R, R2>
  readonly context: Context.Context<RD | R | R2>
  readonly timers: Timers.Timers
  /** Wall clock, in milliseconds. */
  readonly time: () => number
  readonly log: (effect: Effect.Effect<unknown>) => void
}): Effect.Effect<SyncReceiver, never, Scope.Scope> =>
  Effect.gen(function* () {
    const { channel, context, debounce, log, receiver, self, time, timers, wire } = options
    const annotations = { channel, instance: self }
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
    // From the moment a resync is wanted until nothing is missing any more.
    let pending: { readonly since: number; failures: number; lastError: string | undefined } | undefined
    const note = () => {
      pending ??= { since: time(), failures: 0, lastError: undefined }
    }
    const want = () => {
      if (wanted) return
      wanted = true
      note()
      mailbox.push(resync)
    }

    const runResync = Effect.suspend(() => {
      wanted = false
      return receiver.resync
    }).pipe(
      Effect.andThen(Metric.update(Metrics.resyncs, 1)),
      Effect.tapCause((cause) => {
        log(Metric.update(Metrics.resyncsFailed, 1))
        return Effect.sync(() => {
          if (pending !== undefined) {
            pending.failures++
            pending.lastError = String(Cause.squash(cause))
          }
          warn("Resync failed; it is tried again", pretty(cause))
        })
      }),
      // A defect is retried as well: state that stays stale is worse than a loud log.
      Effect.sandbox,
      Effect.retry(resyncBackoff),
      Effect.andThen(() => {
        pending = undefined
        if (wanted || behind) note()
        return Effect.void
      })
    )

    const traced = isTraced(context as Context.Context<never>)
    const handle = ({ message, trace }: Change) =>
      traced
        ? consuming(
            trace,
            "SyncMessage.handle",
            { "messaging.operation.name": "handle", "messaging.destination.name": channel },
            Effect.suspend(() => receiver.handle(message))
          )
        : receiver.handle(message)

    const mailbox = yield* Mailbox.make<Task, RD | R | R2>({
      name: `sync handler of "${channel}"`,
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
        warn("Sync handler failed; resyncing", pretty(exit.cause))
        log(Metric.update(Metrics.handlersFailed, 1))
        want()
      },
      onDrop: () => {
        behind = true
        note()
      }
    })

    const offer =
      debounce === 0
        ? (_: unknown, change: Change) => mailbox.push(change)
        : yield* Debounce.make<Change>(timers, { duration: debounce, maxWait: debounce * 10 }, mailbox.push)

    const accept = (data: Schema.Json, trace: string | undefined): Effect.Effect<void> => {
      const decoded = wire.decode(Payload.fromTree(data))
      const known = settled(decoded)
      if (known !== undefined) return Effect.sync(() => offer(data, { message: known.value, trace }))
      return Effect.matchCauseEffect(Effect.provideContext(decoded, context), {
        onSuccess: (message) => Effect.sync(() => offer(data, { message, trace })),
        onFailure: (cause) => {
          warn("Sync message does not decode; resyncing", Cause.squash(cause))
          want()
          return Metric.update(Metrics.messagesUndecodable, 1)
        }
      })
    }

    const numbers = new Numbers(want)
    const seen = new ExpiringMap<true>(timers.now)
    const isNew = (id: string): boolean => {
      if (seen.get(id) !== undefined) return false
      seen.set(id, true, repeatWindow)
      return true
    }

    return {
      channel,
      numbers,
      want,
      onEnvelope: (envelope) =>
        Effect.suspend(() => {
          const { from, number } = envelope
          // What this instance relays reaches it without the broker: nothing of it can be missing.
          if (from !== self && !numbers.message(from, number, timers.now())) return Effect.void
          if ("data" in envelope) return accept(envelope.data, currentTrace())
          const messages = envelope.relayed.filter(({ id, origin }) => origin !== self && isNew(id))
          return Effect.forEach(messages, ({ data, trace }) => accept(data, trace), { discard: true })
        }),
      status: () => ({
        channel,
        last: Object.fromEntries(Array.from(numbers.last, ([from, { number }]) => [from, number])),
        resync:
          pending === undefined
            ? undefined
            : {
                since: DateTime.makeUnsafe(pending.since),
                failures: pending.failures,
                lastError: pending.lastError
              }
      })
    }
  })
