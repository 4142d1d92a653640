/** An error that goes unhandled does not compile. Checked by types.test.ts; never run. */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import {
  type Cache,
  Cohort,
  EventQueue,
  type Instance,
  Job,
  Lock,
  Plugin,
  PluginHost,
  PubSub,
  type Reason,
  SyncMessage,
  Topic
} from "../../src/index.ts"
import { assertEqual, type ErrorOf } from "./expect.ts"

const Text = Schema.Struct({ text: Schema.String })
const Word = Topic.make("word", Text)
const Work = Job.make("work", Text)
const Changed = SyncMessage.make("changed", Text)
declare const cache: Cache.NamedCache<string>

// --- every primitive fails with its own error ---

// @ts-expect-error CacheError is not handled
export const read: Effect.Effect<unknown, never> = cache.get("key")
// @ts-expect-error CacheError is not handled
export const wrap: Effect.Effect<string, never> = cache.wrap("key", Effect.succeed("value"))
// @ts-expect-error PubSubError is not handled
export const publish: Effect.Effect<void, never, PubSub.PubSub> = PubSub.publish(Word, { text: "" })
// @ts-expect-error SyncMessageError is not handled
export const sync: Effect.Effect<void, never, SyncMessage.SyncMessage> = SyncMessage.publish(Changed, { text: "" })
// @ts-expect-error EventQueueError is not handled
export const enqueue: Effect.Effect<unknown, never, EventQueue.EventQueue> = EventQueue.publish(Work, { text: "" })
// @ts-expect-error LockError is not handled
export const lock: Effect.Effect<void, never, Lock.Lock> = Lock.runExclusive("key", Effect.void)
// @ts-expect-error LockError is not handled
export const lease: Effect.Effect<unknown, never, Lock.Lock | Scope.Scope> = Lock.acquire("key")

export const handled: Effect.Effect<unknown, never> = Effect.catchTag(cache.get("key"), "CacheError", () => Effect.void)
export const byReason: Effect.Effect<unknown, Cache.CacheError> = Effect.catchReason(
  cache.get("key"),
  "CacheError",
  "Unavailable",
  ({ backend }) => Effect.log(backend)
)

// --- the caller's own errors stay as they are ---

const work = Lock.runExclusive("key", Effect.fail("mine" as const))
assertEqual<ErrorOf<typeof work>, "mine" | Lock.LockError>(true)
const load = cache.wrap("key", Effect.fail("mine" as const))
assertEqual<ErrorOf<typeof load>, "mine" | Cache.CacheError>(true)

// --- a host fails with PluginError, whatever its plugins fail with ---

const failing = Plugin.make("failing", { load: Effect.fail("no disk" as const) })
const host = PluginHost.layer([failing])
assertEqual<ErrorOf<typeof host>, PluginHost.PluginError>(true)
// @ts-expect-error PluginError is not handled
export const unhandled: Layer.Layer<PluginHost.PluginHost, never> = host

const program = Layer.launch(host).pipe(
  Effect.catchTag("PluginError", (error) => Effect.log(error.plugin, error.phase))
)
assertEqual<ErrorOf<typeof program>, never>(true)

// @ts-expect-error enabling can be refused
export const enable: Effect.Effect<void, never, PluginHost.PluginHost> = PluginHost.PluginHost.use((host) =>
  host.enable("failing")
)

// --- a backend can fail to start ---

const memory = Cohort.layerMemory()
assertEqual<ErrorOf<typeof memory>, SyncMessage.SyncMessageError | Reason.InvalidInput | Reason.Unavailable>(true)
// @ts-expect-error the backend's errors are not handled
export const backend: Layer.Layer<Cohort.Services | Instance.Instance, never> = memory

// --- an idle gate answers, it does not fail ---

EventQueue.subscribe(Work, { process: () => Effect.void, idle: Effect.succeed(true) })
EventQueue.subscribe(Work, { process: () => Effect.fail("a failed attempt is the queue's to retry") })
EventQueue.subscribe(Work, {
  process: () => Effect.void,
  // @ts-expect-error who is to handle that?
  idle: Effect.fail("no answer")
})
EventQueue.subscribe(Work, {
  process: () => Effect.void,
  // @ts-expect-error the cache's error is not handled
  idle: Effect.map(cache.get("key"), () => true)
})
EventQueue.subscribe(Work, {
  process: () => Effect.void,
  // @ts-expect-error an answer is true or false
  idle: Effect.succeed("yes")
})
