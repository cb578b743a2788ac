// Ownership of an object of the native library.

package io.cosrt;

import java.lang.ref.Cleaner;
import java.lang.ref.Reference;
import java.util.Map;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.BiConsumer;
import java.util.function.LongConsumer;
import java.util.function.LongFunction;

/**
 * An object of the native library. It is freed once: when it is closed, or after it has become unreachable. No call can
 * begin then, and it is not freed while a call runs.
 */
abstract class NativeObject implements AutoCloseable {
    private static final Cleaner CLEANER = Cleaner.create();
    /** The number of objects that are not freed, with which tests find leaks. */
    static final AtomicInteger LIVING = new AtomicInteger();
    /** Ends the calls of a list. {@code begun.forEach(END)} allocates nothing, because the heap may be full. */
    static final BiConsumer<NativeObject, Integer> END = (object, index) -> object.end();

    private final State state;
    private final Cleaner.Cleanable cleanable;

    /**
     * @param free      frees the object; must not refer to it, because it would then stay reachable for ever
     * @param interrupt {@code close} calls it to end running calls of other threads
     */
    NativeObject(long pointer, LongConsumer free, LongConsumer interrupt) {
        state = new State(pointer, free, interrupt);
        LIVING.incrementAndGet();
        cleanable = CLEANER.register(this, state);
    }

    /** Makes a call that several threads may make at once. */
    final <T> T shared(LongFunction<T> call) {
        return call(call, false);
    }

    /** Makes a call that only one thread at a time may make. Others get BUSY, and so does a call from inside it. */
    final <T> T exclusively(LongFunction<T> call) {
        return call(call, true);
    }

    /** Begins a call that only one thread at a time may make. {@link #end} ends it. */
    final long begin() {
        return begin(Thread.currentThread());
    }

    /** Begins such a call of a thread, which may be another one. */
    final long begin(Thread caller) {
        state.enter(caller);
        return state.pointer;
    }

    /** Begins a call with an object of a list, and notes its index. Refuses null, and an object that is there twice. */
    static <T extends NativeObject> long begin(T object, String list, int index, Map<T, Integer> begun) {
        String name = list + "[" + index + "]";
        if (object == null) {
            throw new CosException(ErrorCode.INVALID_ARGUMENT, name + " is null");
        }
        Integer before = begun.get(object);
        if (before != null) {
            throw new CosException(ErrorCode.INVALID_ARGUMENT, name + " is the same as " + list + "[" + before + "]");
        }
        begun.put(object, index); // first, because it may find no memory
        try {
            return object.begin();
        } catch (Throwable e) {
            begun.remove(object);
            throw e;
        }
    }

    /** Ends a call. */
    final void end() {
        state.leave(true);
    }

    private <T> T call(LongFunction<T> call, boolean exclusive) {
        state.enter(exclusive ? Thread.currentThread() : null);
        try {
            return call.apply(state.pointer);
        } finally {
            state.leave(exclusive);
            // Without this, the object might be unreachable, and freed, while its last call runs.
            Reference.reachabilityFence(this);
        }
    }

    /**
     * Frees the object. Cancels a running step, and waits for calls of other threads. Later calls throw
     * {@link IllegalStateException}, but closing again does nothing.
     */
    @Override
    public void close() {
        state.refuseOwner();
        cleanable.clean();
    }

    private static final class State implements Runnable {
        final long pointer;
        private final LongConsumer free;
        private final LongConsumer interrupt;
        private int callers;
        private Thread owner;
        private boolean closed;

        State(long pointer, LongConsumer free, LongConsumer interrupt) {
            this.pointer = pointer;
            this.free = free;
            this.interrupt = interrupt;
        }

        /** {@code exclusive} is the only thread that may call now, or null if several may. */
        synchronized void enter(Thread exclusive) {
            if (closed) {
                throw new IllegalStateException("the object is closed");
            }
            if (exclusive != null) {
                if (owner != null) {
                    throw new CosException(ErrorCode.BUSY, "the object is in use on " + (owner == Thread.currentThread()
                            ? "this thread: a function of a session may not use it" : "another thread"));
                }
                owner = exclusive;
            }
            callers++;
        }

        synchronized void leave(boolean exclusive) {
            if (exclusive) {
                owner = null;
            }
            callers--;
            notifyAll();
        }

        /** Refuses a function that closes its own session, because it would wait for itself. */
        synchronized void refuseOwner() {
            if (owner == Thread.currentThread()) {
                throw new IllegalStateException("a function of a session cannot close it");
            }
        }

        /** The cleaner calls this once. */
        @Override
        public void run() {
            close();
            free.accept(pointer);
            LIVING.decrementAndGet();
        }

        private synchronized void close() {
            closed = true;
            if (callers == 0) {
                return;
            }
            interrupt.accept(pointer);
            boolean interrupted = false;
            while (callers > 0) {
                try {
                    wait();
                } catch (InterruptedException e) {
                    interrupted = true; // freeing goes on, and the thread is interrupted again afterwards
                }
            }
            if (interrupted) {
                Thread.currentThread().interrupt();
            }
        }
    }
}
