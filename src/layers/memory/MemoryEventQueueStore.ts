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
import * as Option from "effect/Option"
import * as KeyValueStore from "effect/persistence/KeyValueStore"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { DeathReason, EventQueueStore, type NewJob, type Worker } from "../../services/EventQueueStore.ts"
import { Instance } from "../../services/Instance.ts"
import { getOrMake } from "../../services/internal/getOrMake.ts"
import * as Validate from "../../services/internal/validate.ts"
import { Payload } from "../../services/Payload.ts"
import { Unavailable } from "../../services/Reason.ts"
import { MemoryHub } from "./MemoryHub.ts"
import { Channel, fresh } from "./MemoryQueueChannel.ts"

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

const stateOf = (hub: MemoryHub["Service"]): State =>
  hub.part<State>("queue", () => ({ channels: new Map(), instances: new Map() }))

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
    const state = stateOf(hub)

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
      take: (max) => link.run(() => channel.take(max, lease, id)),
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
    isGiven: true,
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
 * A job, or a dead letter, as the hub has it.
 *
 * @since 0.2.0
 */
export interface JobState {
  /** What the channel of one app is called by. */
  readonly channel: string
  readonly id: string
  readonly state: "ready" | "delayed" | "inFlight" | "dead"
  /** Encoded. */
  readonly payload: unknown
  /** How often it was taken. */
  readonly attempts: number
  /** The id of the instance that has it, while it is in flight. */
  readonly holder: string | undefined
  /** Milliseconds until its lease runs out, or its delay has passed. */
  readonly due: number | undefined
  readonly lastError: string | undefined
}

/**
 * The jobs and dead letters on a hub, for tests to look at; by channel, oldest first.
 *
 * @since 0.2.0
 */
export const inspect = (hub: MemoryHub["Service"]): ReadonlyArray<JobState> =>
  [...stateOf(hub).channels].flatMap(([name, channel]) => [
    ...[...channel.jobs.values()].map((stored): JobState => {
      const inFlight = stored.token !== 0
      const { attempts, job, lastError } = stored
      return {
        channel: name,
        id: job.id,
        state: inFlight ? "inFlight" : stored.delay === undefined ? "ready" : "delayed",
        payload: job.payload.tree,
        attempts,
        holder: inFlight ? stored.by : undefined,
        due: inFlight || stored.delay !== undefined ? channel.untilDue(stored) : undefined,
        lastError
      }
    }),
    ...[...channel.dead.values()].map(({ letter }): JobState => {
      const { attempts, id, lastError, payload } = letter
      const dead = { state: "dead", holder: undefined, due: undefined } as const
      return { channel: name, id, payload: payload.tree, attempts, lastError, ...dead }
    })
  ])

/**
 * Provides `EventQueueStore`.
 *
 * @since 0.1.0
 */
export const layer: Layer.Layer<EventQueueStore, Unavailable, MemoryHub | Instance> = Layer.effect(
  EventQueueStore,
  make
)
