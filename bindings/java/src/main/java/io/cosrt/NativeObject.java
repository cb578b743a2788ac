package io.cosrt;

import java.lang.ref.Cleaner;
import java.lang.ref.Reference;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.LongConsumer;
import java.util.function.LongFunction;

/**
 * An object of the native library, which is freed once: when it is closed, or when it is found to be unreachable. No call
 * reaches it then, and it is not freed under one.
 */
abstract class NativeObject implements AutoCloseable {
    private static final Cleaner CLEANER = Cleaner.create();
    /** How many are not freed; tests look for leaks. */
    static final AtomicInteger LIVING = new AtomicInteger();

    private final State state;
    private final Cleaner.Cleanable cleanable;

    /**
     * @param free      frees it; must not refer to this object, which would be reachable forever
     * @param interrupt called by {@code close} to end what other threads do with it
     */
    NativeObject(long pointer, LongConsumer free, LongConsumer interrupt) {
        state = new State(pointer, free, interrupt);
        LIVING.incrementAndGet();
        cleanable = CLEANER.register(this, state);
    }

    /** A call that several threads may make at once. */
    final <T> T shared(LongFunction<T> call) {
        return call(call, false);
    }

    /** A call that one thread may make at a time: others get BUSY, and so does a call from inside it. */
    final <T> T exclusively(LongFunction<T> call) {
        return call(call, true);
    }

    private <T> T call(LongFunction<T> call, boolean exclusive) {
        state.enter(exclusive);
        try {
            return call.apply(state.pointer);
        } finally {
            state.leave(exclusive);
            // Or else the object might be found unreachable, and freed, while its last call runs.
            Reference.reachabilityFence(this);
        }
    }

    /**
     * Free the object. If other threads use it, they are waited for; a running step is cancelled. Later calls throw
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

        synchronized void enter(boolean exclusive) {
            if (closed) {
                throw new IllegalStateException("it is closed");
            }
            if (exclusive) {
                if (owner != null) {
                    throw new CosException(ErrorCode.BUSY, "it is in use on " + (owner == Thread.currentThread()
                            ? "this thread: a combiner may not use its own session" : "another thread"));
                }
                owner = Thread.currentThread();
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

        /** A combiner that closes its own session would wait for itself. */
        synchronized void refuseOwner() {
            if (owner == Thread.currentThread()) {
                throw new IllegalStateException("a combiner cannot close its own session");
            }
        }

        /** What the cleanable does, once. */
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
                    interrupted = true; // freeing cannot be given up, but may be told of later
                }
            }
            if (interrupted) {
                Thread.currentThread().interrupt();
            }
        }
    }
}
