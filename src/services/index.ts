/**
 * The primitives, their ports, and the plugin model.
 *
 * @since 0.1.0
 */
export * as Cache from "./Cache.ts"
export * as CacheStore from "./CacheStore.ts"
export * as CronJob from "./CronJob.ts"
export * as EventQueue from "./EventQueue.ts"
export * as EventQueueStore from "./EventQueueStore.ts"
export * as Instance from "./Instance.ts"
export * as Job from "./Job.ts"
export * as Lock from "./Lock.ts"
export * as LockStore from "./LockStore.ts"
export * as Membership from "./Membership.ts"
export * as Metrics from "./Metrics.ts"
export * as Payload from "./Payload.ts"
export * as Plugin from "./Plugin.ts"
export * as PluginHost from "./PluginHost.ts"
export * as PubSub from "./PubSub.ts"
export * as PubSubTransport from "./PubSubTransport.ts"
export * as Reason from "./Reason.ts"
export * as Singleton from "./Singleton.ts"
export * as SyncMessage from "./SyncMessage.ts"
export * as Topic from "./Topic.ts"
export * as UnservedQueues from "./UnservedQueues.ts"
export * as Uuid from "./Uuid.ts"
export * as WorkerId from "./WorkerId.ts"
export * as WorkerMode from "./WorkerMode.ts"
