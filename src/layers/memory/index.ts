/**
 * The memory layers.
 *
 * @since 0.1.0
 */
export * as MemoryCacheStore from "./MemoryCacheStore.ts"
export * as MemoryEventQueueStore from "./MemoryEventQueueStore.ts"
export * as MemoryHub from "./MemoryHub.ts"
export * as MemoryLockStore from "./MemoryLockStore.ts"
export * as MemoryPubSubTransport from "./MemoryPubSubTransport.ts"
