// A thread that decodes the requests of a server in common passes.

package io.cosrt;

import java.util.ArrayList;
import java.util.List;

/**
 * Decodes requests on a thread of its own, all of them in common passes. So passes wait for no thread of a server, and
 * {@link Strategy#AUTO} plans for all requests together. Other threads take what is to be sent when they come to it.
 *
 * <pre>{@code
 * DrivenRequest driven = driver.start(engine.newRequest(body, options));
 * Piece piece;
 * do {
 *     piece = driven.next(); // waits
 *     out.write(piece.text());
 * } while (piece.status().isOpen());
 * }</pre>
 *
 * <p>A request with more than 256 KiB of text that nobody took is not decoded until it is taken. Nobody else may use a
 * request from its start to its end, but to cancel or close it: other calls fail with {@link ErrorCode#BUSY}.
 *
 * <p>A second thread wakes those who wait for text. Waking one takes about 5 µs, and a pass on a GPU about 20 µs for
 * each request, so passes must not wait for that.
 *
 * <p>Any thread may use a driver at any time. Its threads keep no process alive, but end only when the driver is
 * closed.
 */
public final class Driver implements AutoCloseable {
    /**
     * A request with more text than this that nobody took is not decoded until it is taken: a client that reads slowly
     * costs no more memory.
     */
    static final int UNSENT_BYTES = 256 * 1024;

    private final Thread thread = new Thread(this::run, "cosrt-driver");
    private final Waker waker = new Waker();
    /** Guards the rest. A monitor allocates nothing when the heap is full. */
    private final Object lock = new Object();
    private final ArrayList<DrivenRequest> open = new ArrayList<>();
    private boolean isClosed;

    /** Starts the threads. */
    public Driver() {
        thread.setDaemon(true);
        thread.start(); // it starts the other one
    }

    /**
     * Begins to decode a request. It belongs to the driver then, which closes it when it has ended. If this throws, the
     * request stays the caller's.
     *
     * @throws CosException          BUSY (another thread or a driver uses the request), POISONED, and the error that
     *                               has ended the request
     * @throws IllegalStateException the driver or the request is closed
     */
    public DrivenRequest start(Request request) {
        DrivenRequest driven = new DrivenRequest(this, request);
        boolean hasEnded = driven.isEnded();
        synchronized (lock) {
            if (isClosed) {
                throw new IllegalStateException("the driver is closed");
            }
            if (!hasEnded) {
                open.ensureCapacity(open.size() + 1); // first, because it may find no memory
                driven.begin(thread);
                open.add(driven);
                lock.notifyAll();
            }
        }
        if (hasEnded) {
            request.close();
        }
        return driven;
    }

    /** Cancels the requests that are left, and waits until they have ended. Closing again does nothing. */
    @Override
    public void close() {
        synchronized (lock) {
            isClosed = true;
            open.forEach(DrivenRequest::cancel);
            lock.notifyAll();
        }
        join(thread);
    }

    /** Lets the thread look again which requests go on. */
    void wake() {
        synchronized (lock) {
            lock.notifyAll();
        }
    }

    private void run() {
        try {
            waker.start();
            while (next()) {
                try {
                    step();
                } catch (Throwable e) { // such as no memory: those who wait must learn of it, and the thread lives on
                    fail(e);
                }
            }
        } catch (Throwable e) { // the last guard: nobody may wait for a thread that has ended
            synchronized (lock) {
                isClosed = true;
                fail(e);
            }
        } finally {
            waker.end();
        }
    }

    /** Waits for requests that go on. Returns false once the driver is closed and all have ended. Allocates nothing. */
    private boolean next() {
        synchronized (lock) {
            while (true) {
                boolean isReady = false;
                for (int i = open.size() - 1; i >= 0; i--) {
                    if (open.get(i).isEnded()) {
                        open.remove(i);
                    } else {
                        isReady |= open.get(i).isReady();
                    }
                }
                if (isReady || isClosed && open.isEmpty()) {
                    return isReady;
                }
                await(lock);
            }
        }
    }

    private void step() {
        List<DrivenRequest> round;
        synchronized (lock) {
            round = open.stream().filter(DrivenRequest::isReady).toList();
        }
        Object[] outcomes = new Object[round.size()];
        Native.requestStep(true, round.stream().mapToLong(DrivenRequest::pointer).toArray(), outcomes);
        boolean isTold = false;
        for (int i = 0; i < outcomes.length; i++) {
            isTold |= round.get(i).tell(outcomes[i]);
        }
        if (isTold) {
            waker.wake(round);
        }
    }

    /** Ends all requests. Allocates nothing. */
    private void fail(Throwable failure) {
        synchronized (lock) {
            for (int i = 0; i < open.size(); i++) {
                open.get(i).fail(failure);
            }
        }
    }

    /** The thread that wakes those who wait for requests. Without it, the caller does. */
    private static final class Waker {
        private final Thread thread = new Thread(this::run, "cosrt-waker");
        /** Guards the rest. */
        private final Object lock = new Object();
        private List<DrivenRequest> told;
        private boolean ends;

        void start() {
            thread.setDaemon(true);
            try {
                thread.start();
            } catch (OutOfMemoryError e) {
                // The system has no more threads.
            }
        }

        /** Wakes those who wait for these requests soon, or at once if the thread is behind. Allocates nothing. */
        void wake(List<DrivenRequest> round) {
            synchronized (lock) {
                if (told == null && thread.isAlive()) {
                    told = round;
                    lock.notifyAll();
                    return;
                }
            }
            announce(round);
        }

        /** Lets the thread wake those that are left, and waits for its end. */
        void end() {
            synchronized (lock) {
                ends = true;
                lock.notifyAll();
            }
            join(thread);
        }

        private void run() {
            while (true) {
                List<DrivenRequest> round;
                synchronized (lock) {
                    while (told == null && !ends) {
                        await(lock);
                    }
                    round = told;
                    told = null;
                }
                if (round == null) {
                    return;
                }
                announce(round);
            }
        }

        private static void announce(List<DrivenRequest> round) {
            for (int i = 0; i < round.size(); i++) {
                round.get(i).announce();
            }
        }
    }

    /** Waits for a monitor that the caller has. Neither an interrupt nor a full heap ends a thread of a driver. */
    private static void await(Object lock) {
        try {
            lock.wait();
        } catch (InterruptedException | OutOfMemoryError e) {
            // The exception of an interrupt takes memory.
        }
    }

    /** Waits for the end of a thread. An interrupt of the caller comes afterwards. */
    private static void join(Thread thread) {
        boolean interrupted = false;
        while (thread.isAlive()) {
            try {
                thread.join();
            } catch (InterruptedException e) {
                interrupted = true;
            }
        }
        if (interrupted) {
            Thread.currentThread().interrupt();
        }
    }
}
