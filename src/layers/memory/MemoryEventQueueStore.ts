/**
 * Queues in the memory of a {@link MemoryHub}.
 *
 * With a `KeyValueStore` in context, the jobs, dead letters and remembered ids of
 * an app are saved when the scope of its last instance on the hub closes, and
 * restored when the first one opens that the hub has seen. A process that is
 * killed saves nothing.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as MutableList from "effect/MutableList"
import * as Option from "effect/Option"
import * as KeyValueStore from "effect/persistence/KeyValueStore"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import {
  type DeadJob,
  DeathReason,
  type Delivery,
  type Depth,
  EventQueueStore,
  type NewJob,
  type Settlement,
  type Worker
} from "../../services/EventQueueStore.ts"
import { Instance } from "../../services/Instance.ts"
import { ExpiringMap } from "../../services/internal/ExpiringMap.ts"
import { getOrMake } from "../../services/internal/getOrMake.ts"
import type { Timer, Timers } from "../../services/internal/Timers.ts"
import * as Validate from "../../services/internal/validate.ts"
import { Payload } from "../../services/Payload.ts"
import { Unavailable } from "../../services/Reason.ts"
import { MemoryHub } from "./MemoryHub.ts"

interface Stored {
  readonly job: NewJob
  readonly publishedAt: number
  attempts: number
  firstError: string | undefined
  lastError: string | undefined
  /** Changes with every attempt; 0 while nobody has the job. */
  token: number
  /** When the lease runs out, or when the delay has passed. */
  due: number
  delay: Timer | undefined
}

const fresh = (job: NewJob, publishedAt: number): Stored => ({
  job,
  publishedAt,
  attempts: 0,
  firstError: undefined,
  lastError: undefined,
  token: 0,
  due: 0,
  delay: undefined
})

/** A dead letter, and what it is redriven as. */
interface Buried {
  readonly letter: DeadJob
  readonly job: NewJob
}

/** One channel: every job is in `jobs`, and in one of ready, delayed (it has a timer) and in flight. */
class Channel {
  readonly jobs = new Map<string, Stored>()
  readonly ready = MutableList.make<Stored>()
  readonly inFlight = new Set<Stored>()
  readonly dead = new Map<string, Buried>()
  readonly endedIds: ExpiringMap<true>
  readonly waiting = new Set<() => void>()
  private readonly timers: Timers
  private readonly wallMillis: () => number
  private leaseCheck: Timer | undefined
  private lastToken = 0

  constructor(timers: Timers, wallMillis: () => number) {
    this.timers = timers
    this.wallMillis = wallMillis
    this.endedIds = new ExpiringMap(timers.now)
  }

  publish(job: NewJob): boolean {
    if (this.jobs.has(job.id) || this.endedIds.get(job.id)) return false
    this.add(fresh(job, this.wallMillis()), job.delay)
    return true
  }

  add(stored: Stored, delay: number): void {
    this.jobs.set(stored.job.id, stored)
    this.offer(stored, delay)
  }

  /** Makes a job ready after a delay. */
  private offer(stored: Stored, delay: number): void {
    stored.token = 0
    if (delay <= 0) {
      MutableList.append(this.ready, stored)
      this.wake()
      return
    }
    stored.due = this.timers.now() + delay
    stored.delay = this.timers.at(stored.due, () => {
      stored.delay = undefined
      MutableList.append(this.ready, stored)
      this.wake()
    })
  }

  private offerFirst(stored: Stored): void {
    stored.token = 0
    MutableList.prepend(this.ready, stored)
    this.wake()
  }

  private wake(): void {
    if (this.waiting.size === 0) return
    const waiting = [...this.waiting]
    this.waiting.clear()
    for (const wake of waiting) wake()
  }

  take(max: number, lease: number): ReadonlyArray<Delivery> {
    const deliveries: Array<Delivery> = []
    const due = this.timers.now() + lease
    while (deliveries.length < max && this.ready.length > 0) {
      const stored = MutableList.take(this.ready) as Stored
      stored.attempts++
      stored.token = ++this.lastToken
      stored.due = due
      this.inFlight.add(stored)
      deliveries.push({
        id: stored.job.id,
        payload: stored.job.payload,
        attempt: stored.attempts,
        timeout: stored.job.timeout,
        maxRetries: stored.job.maxRetries,
        lastError: stored.lastError,
        token: stored.token
      })
    }
    if (deliveries.length > 0) this.watchLeases(due)
    return deliveries
  }

  /** The job, if this delivery still has it. */
  private heldBy(delivery: Delivery): Stored | undefined {
    const stored = this.jobs.get(delivery.id)
    return stored !== undefined && stored.token === delivery.token ? stored : undefined
  }

  renew(delivery: Delivery, lease: number): boolean {
    const stored = this.heldBy(delivery)
    if (stored === undefined) return false
    stored.due = this.timers.now() + lease
    return true
  }

  settle({ delivery, outcome }: Settlement): boolean {
    const stored = this.heldBy(delivery)
    if (stored === undefined) return false
    this.inFlight.delete(stored)
    switch (outcome._tag) {
      case "ack":
        this.end(stored)
        break
      case "retry":
        this.noteError(stored, outcome.error)
        this.offer(stored, outcome.delay)
        break
      case "release":
        stored.attempts--
        if (outcome.delay > 0) this.offer(stored, outcome.delay)
        else this.offerFirst(stored)
        break
      case "bury":
        this.noteError(stored, outcome.error)
        this.end(stored)
        this.bury(stored, outcome.reason)
    }
    return true
  }

  private noteError(stored: Stored, error: string): void {
    stored.firstError ??= error
    stored.lastError = error
  }

  private end(stored: Stored): void {
    const { id, keepId } = stored.job
    this.jobs.delete(id)
    if (keepId > 0) this.endedIds.set(id, true, keepId)
  }

  private bury(stored: Stored, reason: DeathReason): void {
    const { id, maxRetries, payload } = stored.job
    this.dead.delete(id)
    this.dead.set(id, {
      job: stored.job,
      letter: {
        id,
        payload,
        // A worker that was lost on the last attempt is noticed by taking the job once more.
        attempts: Math.min(stored.attempts, maxRetries + 1),
        reason,
        firstError: stored.firstError ?? "",
        lastError: stored.lastError ?? "",
        publishedAt: stored.publishedAt,
        diedAt: this.wallMillis()
      }
    })
  }

  private watchLeases(due: number): void {
    if (this.leaseCheck !== undefined) {
      if (this.leaseCheck.pending && this.leaseCheck.due <= due) return
      this.timers.cancel(this.leaseCheck)
    }
    this.leaseCheck = this.timers.at(due, () => {
      const now = this.timers.now()
      let next = Number.POSITIVE_INFINITY
      for (const stored of [...this.inFlight]) {
        if (stored.due > now) next = Math.min(next, stored.due)
        else {
          this.inFlight.delete(stored)
          this.offerFirst(stored)
        }
      }
      if (next < Number.POSITIVE_INFINITY) this.watchLeases(next)
    })
  }

  /** Milliseconds until a delayed job is ready. */
  untilDue(stored: Stored): number {
    return stored.due - this.timers.now()
  }

  depth(): Depth {
    const ready = this.ready.length
    const inFlight = this.inFlight.size
    return { ready, inFlight, delayed: this.jobs.size - ready - inFlight, dead: this.dead.size }
  }

  redrive(ids: ReadonlyArray<string> | "all"): number {
    let redriven = 0
    for (const id of ids === "all" ? [...this.dead.keys()] : ids) {
      const buried = this.dead.get(id)
      if (buried === undefined || this.jobs.has(id)) continue
      this.dead.delete(id)
      this.add(fresh(buried.job, buried.letter.publishedAt), 0)
      redriven++
    }
    return redriven
  }

  discard(ids: ReadonlyArray<string> | "all"): number {
    return (ids === "all" ? [...this.dead.keys()] : ids).filter((id) => this.dead.delete(id)).length
  }
}

/** What is written to the `KeyValueStore`. Times are Unix milliseconds. */
const SavedJob = Schema.Struct({
  id: Schema.String,
  payload: Schema.String,
  timeout: Schema.Number,
  maxRetries: Schema.Int,
  keepId: Schema.Number,
  publishedAt: Schema.Number,
  attempts: Schema.Int,
  firstError: Schema.optionalKey(Schema.String),
  lastError: Schema.optionalKey(Schema.String)
})
const Saved = Schema.fromJsonString(
  Schema.Struct({
    version: Schema.Literal(1),
    channels: Schema.Record(
      Schema.String,
      Schema.Struct({
        jobs: Schema.Array(Schema.Struct({ ...SavedJob.fields, dueAt: Schema.Number })),
        dead: Schema.Array(Schema.Struct({ ...SavedJob.fields, reason: DeathReason, diedAt: Schema.Number })),
        endedIds: Schema.Record(Schema.String, Schema.Number)
      })
    )
  })
)

interface State {
  readonly channels: Map<string, Channel>
  /** How many instances each app has on the hub. */
  readonly instances: Map<string, number>
}

/**
 * Makes the store of one instance. Fails when saved jobs cannot be read; they
 * are left as they are.
 *
 * @since 0.1.0
 */
export const make: Effect.Effect<EventQueueStore["Service"], Unavailable, MemoryHub | Instance | Scope.Scope> =
  Effect.gen(function* () {
    const hub = yield* MemoryHub
    const { app, id } = yield* Instance
    const link = hub.link(id)
    const clock = yield* Clock.clockWith(Effect.succeed)
    const wallMillis = () => clock.currentTimeMillisUnsafe()
    const state = hub.part<State>("queue", () => ({ channels: new Map(), instances: new Map() }))

    const channelOf = (name: string): Channel =>
      getOrMake(state.channels, name, () => new Channel(hub.timers, wallMillis))

    const saved = yield* Effect.serviceOption(KeyValueStore.KeyValueStore)
    if (Option.isSome(saved)) yield* persist(saved.value, state, app, channelOf, wallMillis)

    const worker = (channel: Channel, lease: number): Worker => ({
      ready: Effect.suspend(() =>
        link.runEffect(() =>
          channel.ready.length > 0
            ? Effect.void
            : Effect.callback<void>((resume) => {
                const wake = () => resume(Effect.void)
                channel.waiting.add(wake)
                return Effect.sync(() => channel.waiting.delete(wake))
              })
        )
      ),
      take: (max) => link.run(() => channel.take(max, lease)),
      pause: Effect.void,
      renew: (deliveries) => link.run(() => deliveries.map((delivery) => channel.renew(delivery, lease))),
      settle: (settlements) => link.run(() => settlements.map((settlement) => channel.settle(settlement)))
    })

    return EventQueueStore.of({
      system: "memory",
      publish: (name, job) => link.run(() => channelOf(name).publish(job)),
      worker: (name, { lease }) => link.run(() => worker(channelOf(name), lease)),
      depth: (name) => link.run(() => channelOf(name).depth()),
      deadLetters: (name, { limit, offset }) =>
        link.run(() => [...channelOf(name).dead.values()].slice(offset, offset + limit).map(({ letter }) => letter)),
      deadLetter: (name, id) => link.run(() => channelOf(name).dead.get(id)?.letter),
      redrive: (name, ids) => link.run(() => channelOf(name).redrive(ids)),
      discard: (name, ids) => link.run(() => channelOf(name).discard(ids))
    })
  })

/** Restores an app's queues with its first instance, and saves them with its last. */
const persist = (
  store: KeyValueStore.KeyValueStore,
  state: State,
  app: string,
  channelOf: (name: string) => Channel,
  wallMillis: () => number
): Effect.Effect<void, Unavailable, Scope.Scope> =>
  Effect.gen(function* () {
    const key = `cohort:queue:${app}`
    const prefix = `${Validate.address(app, "queue")}:`

    const save = Effect.suspend(() => {
      const channels: Record<string, (typeof Saved.Type)["channels"][string]> = {}
      const now = wallMillis()
      for (const [name, channel] of state.channels) {
        if (!name.startsWith(prefix)) continue
        const image = imageOf(channel, now)
        if (image.jobs.length + image.dead.length + Object.keys(image.endedIds).length > 0) channels[name] = image
      }
      return Object.keys(channels).length === 0
        ? store.remove(key)
        : Effect.flatMap(Schema.encodeEffect(Saved)({ version: 1, channels }), (json) => store.set(key, json))
    }).pipe(Effect.catchCause((cause) => Effect.logError("Queued jobs could not be saved", cause)))

    const load = Effect.gen(function* () {
      const json = yield* Effect.mapError(store.get(key), unreadable)
      if (json === undefined) return
      const { channels } = yield* Effect.mapError(Schema.decodeEffect(Saved)(json), unreadable)
      const now = wallMillis()
      for (const [name, image] of Object.entries(channels)) restore(channelOf(name), image, now)
    })

    // A hub that has had the app before still has its jobs, and newer than they were saved.
    const open = Effect.suspend(() => {
      const known = state.instances.get(app)
      state.instances.set(app, (known ?? 0) + 1)
      return known === undefined
        ? Effect.onError(load, () => Effect.sync(() => state.instances.delete(app)))
        : Effect.void
    })
    const close = Effect.suspend(() => {
      const left = (state.instances.get(app) ?? 1) - 1
      state.instances.set(app, left)
      return left === 0 ? save : Effect.void
    })
    yield* Effect.acquireRelease(open, () => close)
  })

const unreadable = (cause: unknown) =>
  new Unavailable({ backend: "memory", detail: "saved jobs cannot be read", cause })

type Image = (typeof Saved.Type)["channels"][string]

const imageOf = (channel: Channel, now: number): Image => {
  const image = (job: NewJob) => ({
    id: job.id,
    payload: job.payload.json,
    timeout: job.timeout,
    maxRetries: job.maxRetries,
    keepId: job.keepId
  })
  return {
    jobs: [...channel.jobs.values()].map((stored) => ({
      ...image(stored.job),
      publishedAt: stored.publishedAt,
      attempts: stored.attempts,
      ...(stored.firstError === undefined ? {} : { firstError: stored.firstError }),
      ...(stored.lastError === undefined ? {} : { lastError: stored.lastError }),
      dueAt: stored.delay === undefined ? now : now + channel.untilDue(stored)
    })),
    dead: [...channel.dead.values()].map(({ job, letter: dead }) => ({
      ...image(job),
      publishedAt: dead.publishedAt,
      attempts: dead.attempts,
      firstError: dead.firstError,
      lastError: dead.lastError,
      reason: dead.reason,
      diedAt: dead.diedAt
    })),
    endedIds: Object.fromEntries(channel.endedIds.remaining().map(([id, millis]) => [id, now + millis]))
  }
}

const restore = (channel: Channel, image: Image, now: number): void => {
  const jobOf = (saved: typeof SavedJob.Type): NewJob => ({
    id: saved.id,
    payload: Payload.fromJson(saved.payload),
    delay: 0,
    timeout: saved.timeout,
    maxRetries: saved.maxRetries,
    keepId: saved.keepId
  })
  for (const saved of image.jobs) {
    const { attempts, firstError, lastError } = saved
    channel.add(
      Object.assign(fresh(jobOf(saved), saved.publishedAt), { attempts, firstError, lastError }),
      saved.dueAt - now
    )
  }
  for (const saved of image.dead) {
    const job = jobOf(saved)
    const { attempts, diedAt, firstError = "", id, lastError = "", publishedAt, reason } = saved
    channel.dead.set(id, {
      job,
      letter: { id, payload: job.payload, attempts, reason, firstError, lastError, publishedAt, diedAt }
    })
  }
  for (const [id, until] of Object.entries(image.endedIds)) {
    if (until > now) channel.endedIds.set(id, true, until - now)
  }
}

/**
 * Provides `EventQueueStore`.
 *
 * @since 0.1.0
 */
export const layer: Layer.Layer<EventQueueStore, Unavailable, MemoryHub | Instance> = Layer.effect(
  EventQueueStore,
  make
)
