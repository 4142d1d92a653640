/**
 * The instances of the app, as they see each other.
 *
 * Each instance tells the others about itself when it starts, every `interval` (default 5 seconds), when asked,
 * and when it stops. One that was not heard of for three intervals is taken for dead.
 *
 * What one instance knows is a moment old, and instances may disagree for that long: for what must happen once,
 * use a `Lock` or a `Singleton`. An instance that is cut off from the broker sees itself alone.
 *
 * Built on `PubSub`: it works on every backend that broadcasts.
 *
 * @since 0.2.0
 */
import * as Context from "effect/Context"
import * as DateTime from "effect/DateTime"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import type * as Stream from "effect/Stream"
import * as SubscriptionRef from "effect/SubscriptionRef"
import { EventQueue } from "./EventQueue.ts"
import { Instance } from "./Instance.ts"
import * as Timers from "./internal/Timers.ts"
import * as Validate from "./internal/validate.ts"
import * as PubSub from "./PubSub.ts"
import { InvalidInput } from "./Reason.ts"
import * as Topic from "./Topic.ts"

const About = Schema.Struct({
  id: Schema.String,
  version: Schema.String,
  workerMode: Schema.String,
  /** Names of the enabled plugins, in start order. */
  plugins: Schema.Array(Schema.String),
  /** The queue channels that it has published to or subscribes to. */
  queues: Schema.Array(Schema.Struct({ channel: Schema.String, subscribed: Schema.Boolean, serving: Schema.Boolean })),
  startedAt: Schema.DateTimeUtcFromMillis
})

/**
 * One instance, as it was last heard of.
 *
 * @since 0.2.0
 */
export interface Member extends Schema.Schema.Type<typeof About> {
  readonly lastSeen: DateTime.Utc
}

/**
 * The live instances. See the module for the guarantees.
 *
 * @since 0.2.0
 */
export class Membership extends Context.Service<
  Membership,
  {
    /** This instance and the others that are alive, the oldest first. */
    readonly members: Effect.Effect<ReadonlyArray<Member>>
    /** The same, now and whenever someone comes, goes or says something new about itself. */
    readonly changes: Stream.Stream<ReadonlyArray<Member>>
    /** What this instance says its plugins are, from now on; `PluginHost` calls it. */
    readonly plugins: (names: Effect.Effect<ReadonlyArray<string>>) => Effect.Effect<void>
  }
>()("cohort/services/Membership") {}

/**
 * Options of {@link layerWith}.
 *
 * @since 0.2.0
 */
export interface Options {
  /** How often an instance tells about itself; positive and finite. Default 5 seconds. */
  readonly interval?: Duration.Input | undefined
}

/** What instances tell each other; `answer` asks everybody to tell as well. */
const Word = Schema.Union([
  Schema.Struct({ _tag: Schema.tag("Here"), about: About, answer: Schema.Boolean }),
  Schema.Struct({ _tag: Schema.tag("Gone"), id: Schema.String })
])

const Members = Topic.make("members", Word, "members")

/** After how many intervals of silence an instance is taken for dead. */
const silences = 3

/**
 * Makes the service.
 *
 * @since 0.2.0
 */
export const make = (
  options: Options = {}
): Effect.Effect<
  Membership["Service"],
  PubSub.PubSubError | InvalidInput,
  PubSub.PubSub | EventQueue | Instance | Scope.Scope
> =>
  Effect.gen(function* () {
    const interval = Validate.millis("interval", options.interval ?? "5 seconds")
    if (interval instanceof InvalidInput) return yield* Effect.fail(interval)
    const pubsub = yield* PubSub.PubSub
    const queue = yield* EventQueue
    const { id, version, workerMode } = yield* Instance
    const { now } = yield* Timers.make
    const startedAt = yield* DateTime.now

    /** The others, with the monotonic time they were heard of. */
    const heard = new Map<string, { readonly member: Member; readonly at: number }>()
    let plugins: Effect.Effect<ReadonlyArray<string>> = Effect.succeed([])

    const self = Effect.gen(function* () {
      const queues = yield* queue.channels
      return { id, version, workerMode: workerMode.text, plugins: yield* plugins, queues, startedAt }
    })

    const members = Effect.gen(function* () {
      for (const [other, { at }] of heard) if (at + silences * interval <= now()) heard.delete(other)
      const here: Member = { ...(yield* self), lastSeen: yield* DateTime.now }
      return [here, ...Array.from(heard.values(), ({ member }) => member)].sort(byAge)
    })

    const latest = yield* SubscriptionRef.make<ReadonlyArray<Member>>(yield* members)
    const refresh = Effect.flatMap(members, (members) => SubscriptionRef.set(latest, members))

    let left = false
    const tell = (answer: boolean) =>
      Effect.flatMap(self, (about) =>
        // After its farewell it would be there again, for everyone who hears it.
        left ? Effect.void : pubsub.publish(Members, { _tag: "Here", about, answer })
      ).pipe(Effect.catch((error) => Effect.logDebug("Members not told", error)))

    yield* pubsub.subscribe(
      Members,
      (word) =>
        Effect.gen(function* () {
          if (word._tag === "Gone") heard.delete(word.id)
          else {
            heard.set(word.about.id, { member: { ...word.about, lastSeen: yield* DateTime.now }, at: now() })
            if (word.answer) yield* tell(false)
          }
          yield* refresh
        }),
      // Who came or went in the meantime is not known.
      { onGap: tell(true) }
    )
    yield* Effect.addFinalizer(() => {
      left = true
      return Effect.ignore(pubsub.publish(Members, { _tag: "Gone", id }))
    })
    yield* tell(true)
    yield* Effect.andThen(tell(false), refresh).pipe(Effect.delay(interval), Effect.forever, Effect.forkScoped)

    return Membership.of({
      members,
      changes: SubscriptionRef.changes(latest),
      plugins: (names) => {
        plugins = names
        return Effect.andThen(tell(false), refresh)
      }
    })
  })

const byAge = (a: Member, b: Member): number =>
  a.startedAt.epochMilliseconds - b.startedAt.epochMilliseconds || (a.id < b.id ? -1 : 1)

/**
 * Provides {@link Membership}.
 *
 * @since 0.2.0
 */
export const layerWith = (
  options: Options
): Layer.Layer<Membership, PubSub.PubSubError | InvalidInput, PubSub.PubSub | EventQueue | Instance> =>
  Layer.effect(Membership, make(options))

/**
 * Provides {@link Membership} with the default options.
 *
 * @since 0.2.0
 */
export const layer: Layer.Layer<Membership, PubSub.PubSubError | InvalidInput, PubSub.PubSub | EventQueue | Instance> =
  layerWith({})
