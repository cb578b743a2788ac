// A request that a driver decodes.

package io.cosrt;

import java.io.ByteArrayOutputStream;

/** A request that a {@link Driver} decodes. Any thread may use it at any time. */
public final class DrivenRequest {
    private final Driver driver;
    private final Request request;
    private long pointer; // of the request
    private volatile boolean isCancelled;
    /** Guards the rest, which the driver's thread brings. A monitor allocates nothing when the heap is full. */
    private final Object lock = new Object();
    private final ByteArrayOutputStream text = new ByteArrayOutputStream();
    private RequestStatus status;
    private Throwable error;

    DrivenRequest(Driver driver, Request request) {
        this.driver = driver;
        this.request = request;
        status = request.status();
    }

    /**
     * Waits until there is something to send, or the request has ended. Each text is given once, and after the end
     * there is none. An error comes behind what was decoded before it, and then again with each call.
     *
     * @throws CosException          as for {@link Request#step}
     * @throws IllegalStateException the driver cannot step, such as for want of memory, which is the cause
     * @throws InterruptedException  the thread was interrupted while it waited; the request goes on
     */
    public Piece next() throws InterruptedException {
        Piece piece;
        boolean waited;
        synchronized (lock) {
            while (text.size() == 0 && !isEnded()) {
                lock.wait();
            }
            if (text.size() == 0 && error != null) {
                throw error instanceof RuntimeException known
                        ? known : new IllegalStateException("the driver cannot step", error);
            }
            piece = new Piece(status, text.toByteArray());
            waited = !isReady();
            text.reset();
        }
        if (waited) {
            driver.wake();
        }
        return piece;
    }

    /** Lets the request end soon, with {@link RequestState#CANCELLED}. Never waits for a pass. */
    public void cancel() {
        try {
            request.cancel();
        } catch (CosException poisoned) {
            // Its next step ends it.
        }
    }

    long pointer() {
        return pointer;
    }

    /** Makes the driver's thread the only one that uses the request. */
    void begin(Thread thread) {
        pointer = request.begin(this, thread);
    }

    /** Lets the driver step to the end, even if nobody takes the text. */
    void resume() {
        isCancelled = true;
        driver.wake();
    }

    /** Whether there is no further step. */
    boolean isEnded() {
        synchronized (lock) {
            return error != null || !status.isOpen();
        }
    }

    /** Whether the driver steps it. Otherwise it waits until its text is taken. */
    boolean isReady() {
        synchronized (lock) {
            return isCancelled || text.size() <= Driver.UNSENT_BYTES;
        }
    }

    /**
     * Takes what a step has brought, on the driver's thread: a status, or the error that has ended the request. Those
     * who wait learn of errors at once. Returns whether {@link #announce} must tell them of the rest.
     */
    boolean tell(Object outcome) {
        try {
            if (outcome instanceof RequestStatus now) {
                return add(now, Native.requestAnswer(pointer));
            }
            fail((Throwable) outcome);
        } catch (Throwable e) { // such as no memory for this answer, which must not hurt other requests
            fail(e);
        }
        return false;
    }

    private boolean add(RequestStatus now, byte[] answer) {
        synchronized (lock) {
            text.writeBytes(answer); // first, because it may fail
            if (!now.isOpen()) {
                release(); // before others are told
            }
            status = now;
            return text.size() > 0 || isEnded();
        }
    }

    /** Wakes those who wait, if there is something to take. Allocates nothing. */
    void announce() {
        synchronized (lock) {
            if (text.size() > 0 || isEnded()) {
                lock.notifyAll();
            }
        }
    }

    /** Ends the request if it has not ended, on the driver's thread. Allocates and throws nothing. */
    void fail(Throwable failure) {
        synchronized (lock) {
            if (!isEnded()) {
                release();
                error = failure;
            }
            lock.notifyAll();
        }
    }

    private void release() {
        try {
            request.release();
        } catch (Throwable e) {
            // It is freed when it is unreachable. Those who wait must learn of the end.
        }
    }
}
